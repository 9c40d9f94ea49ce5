"""Rendered conversation -> tokens, where only the template's own tokens become control tokens."""

import json
import secrets
from collections.abc import Iterable, Mapping, Sequence, Set
from copy import copy
from typing import NamedTuple

from tokenizers import AddedToken as LibraryToken
from tokenizers import Tokenizer

from loramux_adapters.added_tokens import AddedToken
from loramux_server.chat.messages import Piece, TemplateTokens
from loramux_server.field_errors import wrong
from loramux_server.images.messages import Placeholder
from loramux_server.text.control_tokens import finds_control_tokens, hide_control_tokens
from loramux_server.text.pieces.extra_tokens import ExtraTokens
from loramux_server.text.tokenizer import check_unbroken, panics_refused, twin_of


class Vocabulary(NamedTuple):
    """The added tokens of a tokenizer."""

    ids: Mapping[str, int]
    control: Set[str]
    """Control tokens, such as `</s>`."""


class ChatEncoder:
    """Encodes pieces as the base model's tokenizer encodes their concatenation.

    A tokenizer encodes each stretch of text between added tokens by itself, and the first one
    differently from the others. So all pieces are encoded in one call, in which each token that a
    template wrote is replaced by a stand-in: a random string that no content can contain.
    """

    def __init__(self, tokenizer_json: str) -> None:
        """Read the base model's tokenizer, which takes a second if it is large."""
        described = json.loads(tokenizer_json)
        added = described.get("added_tokens", [])
        ids = {str(token["content"]): int(token["id"]) for token in added}
        control = {str(token["content"]) for token in added if token["special"]}
        self.vocabulary = Vocabulary(ids, control)
        # Except the unknown token, which any text may yield.
        unknown = _unknown(described)
        self._forged = {ids[content] for content in control - {unknown}}
        for token in added:
            token["special"] = True
        self._tokenizer = Tokenizer.from_str(json.dumps(described))
        self._tokenizer.encode_special_tokens = True
        if finds_control_tokens(
            self._tokenizer, {ids[content]: content for content in ids.keys() - {unknown}}
        ):
            described = hide_control_tokens(described, set(ids.values()))
            self._tokenizer = Tokenizer.from_str(json.dumps(described))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._extra_tokens = ExtraTokens(self._tokenizer)
        self._secret = secrets.token_hex(8)
        self._stand_ins: dict[str, str] = {}
        """Token -> its stand-in."""
        self._meant: dict[int, int] = {}
        """Id of the stand-in -> id of the token."""
        self._stand_in(
            AddedToken(
                token["id"], token["content"], lstrip=token["lstrip"], rstrip=token["rstrip"]
            )
            for token in added
        )

    def with_own(self, added: Sequence[AddedToken]) -> "ChatEncoder":
        """Return an encoder for an adapter; it shares the vocabulary of this one.

        Args:
            added: The adapter's tokens, which this one lacks.
        """
        own = copy(self)
        ids, control = self.vocabulary
        own.vocabulary = Vocabulary(
            {**ids, **{token.content: token.id for token in added}},
            control | {token.content for token in added if token.special},
        )
        own._tokenizer = twin_of(self._tokenizer)
        own._stand_ins, own._meant = dict(self._stand_ins), dict(self._meant)
        own._stand_in(added)
        return own

    def template_tokens(self, variables: Mapping[str, str]) -> TemplateTokens:
        """Return the added tokens and `variables` of templates, for a renderer process."""
        ids, control = self.vocabulary
        return TemplateTokens(
            tuple(sorted(control)), tuple(sorted(ids.keys() - control)), dict(variables)
        )

    def encode(self, pieces: Sequence[Piece], placeholder: Placeholder | None = None) -> list[int]:
        """Return the tokens of `pieces`.

        Args:
            pieces: A rendered conversation.
            placeholder: The placeholder of images; no text may become its token either.

        Raises:
            InvalidArgumentError: They cannot be tokenized, or the tokenizer turns plain text into a
                control token.
        """
        for piece in pieces:
            check_unbroken(piece.text, "messages")
        text = "".join(self._text_of(piece, placeholder) for piece in pieces)
        with panics_refused("messages"):
            found = self._tokenizer.encode(text, add_special_tokens=False).ids
        forbidden = self._forged if placeholder is None else self._forged | {placeholder.token}
        if forged := forbidden.intersection(found):
            message = f"contain text that the tokenizer encodes to control token {min(forged)}"
            raise wrong("messages", message)
        read = self._extra_tokens.to_base(found)
        return [self._meant.get(token, other) for token, other in zip(found, read, strict=True)]

    def _text_of(self, piece: Piece, placeholder: Placeholder | None) -> str:
        """Return the text to encode for `piece`."""
        if not piece.is_token:
            return piece.text
        text = self._stand_ins.get(piece.text, "")
        if placeholder is None or self.vocabulary.ids.get(piece.text) != placeholder.token:
            return text
        return f"{placeholder.before}{text}{placeholder.after}"

    def _stand_in(self, added: Iterable[AddedToken]) -> None:
        """Give each of `added` a stand-in."""
        tokens = list(added)
        first = len(self._stand_ins)
        stand_ins = {
            token.content: f"{self._secret}x{number}x" for number, token in enumerate(tokens, first)
        }
        # Finds no special token in text, and so no added token but the stand-ins.
        self._tokenizer.encode_special_tokens = True
        self._tokenizer.add_tokens(
            [
                LibraryToken(
                    stand_ins[token.content], lstrip=token.lstrip, rstrip=token.rstrip,
                    normalized=False,
                )
                for token in tokens
            ]
        )  # fmt: skip
        self._stand_ins |= stand_ins
        for token in tokens:
            stand_in = self._tokenizer.token_to_id(stand_ins[token.content])
            assert stand_in is not None
            self._meant[stand_in] = token.id


def _unknown(described: dict[str, dict[str, object]]) -> str:
    """Return the tokenizer's unknown token; empty if it has none."""
    unknown = described["model"].get("unk_token")
    if isinstance(unknown, str):
        return unknown
    number, entries = described["model"].get("unk_id"), described["model"].get("vocab")
    if isinstance(number, int) and isinstance(entries, list):
        return str(entries[number][0])
    return ""
