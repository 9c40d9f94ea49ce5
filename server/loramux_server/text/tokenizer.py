"""Tokenization, and incremental detokenization."""

import json
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager
from typing import NamedTuple

from tokenizers import AddedToken as LibraryToken
from tokenizers import Encoding, Tokenizer

from loramux.errors import InvalidArgumentError
from loramux_adapters.added_tokens import AddedToken
from loramux_server.field_errors import wrong
from loramux_server.text.control_tokens import finds_control_tokens, hide_control_tokens
from loramux_server.text.decoder import TextDecoder
from loramux_server.text.pieces.extra_tokens import ExtraTokens
from loramux_server.text.token_bytes import TokenBytes

MAX_UNBROKEN = 64 << 10
"""Maximum run of characters without white space, which some tokenizers treat as one word."""
OFF_LOOP = 4096
"""Characters from which a text is tokenized in a thread, off the event loop."""
Span = tuple[int, int]
"""First character and the one after the last, in code points."""


class TextPair(NamedTuple):
    """Two texts, tokenized as a pair."""

    tokens: list[int]
    places: Encoding
    """The library's encoding: which text, and where in it, each token comes from."""


class TextTokenizer:
    """The base model's tokenizer, with the added tokens of an adapter."""

    _control: Tokenizer
    _plain: Tokenizer

    def __init__(self, base: "str | TextTokenizer", added: Sequence[AddedToken] = ()) -> None:
        """Load it; a large vocabulary takes a second.

        Args:
            base: The base model's tokenizer.json, or its loaded tokenizer, to share the vocabulary.
            added: An adapter's added tokens, in the order of their ids; those of the base may be
                among them.

        Raises:
            ValueError: Their ids do not continue the base's.
        """
        # Two instances: whether `</s>` in a text is a control token is a setting of a tokenizer.
        if isinstance(base, str):
            self._control = _load(base)
            self._plain = _plain(self._control, base)
        else:
            self._control, self._plain = twin_of(base._control), twin_of(base._plain)
        self._plain.encode_special_tokens = True
        _add(self._plain, _add(self._control, added))
        self._extra_tokens = ExtraTokens(self._control)
        known = self._control.get_added_tokens_decoder()
        self._special = frozenset(token for token, about in known.items() if about.special)
        self._bytes = TokenBytes(self._control)

    def encode(
        self, text: str, field: str = "prompt", *, parse_special: bool, add_special: bool
    ) -> list[int]:
        """Return the tokens of `text`.

        Args:
            text: What the user wrote.
            field: The request field that holds it, for errors.
            parse_special: Whether text such as `</s>` is a control token or plain text.
            add_special: Whether to add the tokenizer's own special tokens, such as a prefix.

        Raises:
            InvalidArgumentError: The text cannot be tokenized.
        """
        return self._extra_tokens.to_base(
            self._encoding(text, field, parse_special, add_special).ids
        )

    def encode_placed(
        self, text: str, field: str, *, parse_special: bool, add_special: bool
    ) -> tuple[list[int], list[Span | None]]:
        """Return the tokens of `text`, and where in it each one is.

        Tokens that share a character share its span; None stands for tokens that are not from the
        text. Arguments and errors are those of `encode`.
        """
        found = self._encoding(text, field, parse_special, add_special)
        is_added = found.special_tokens_mask if add_special else [0] * len(found.ids)
        places = [None if own else span for own, span in zip(is_added, found.offsets, strict=True)]
        return self._extra_tokens.to_base(found.ids), places

    def encode_pair(
        self, texts: tuple[str, str], fields: tuple[str, str], *, parse_special: bool,
        add_special: bool,
    ) -> TextPair:  # fmt: skip
        """Return the tokens of two texts, joined as the tokenizer joins a pair.

        `fields` are the request fields of `texts`. Other arguments and errors are those of
        `encode`.
        """
        for text, field in zip(texts, fields, strict=True):
            check_unbroken(text, field)
        tokenizer = self._control if parse_special else self._plain
        try:
            with panics_refused(fields[1]):
                found = tokenizer.encode(*texts, add_special_tokens=add_special)
        except InvalidArgumentError:
            # Encoded alone, the first text shows whether it is at fault.
            self._encoding(texts[0], fields[0], parse_special, add_special)
            raise
        return TextPair(self._extra_tokens.to_base(found.ids), found)

    def _encoding(self, text: str, field: str, parse_special: bool, add_special: bool) -> Encoding:
        check_unbroken(text, field)
        tokenizer = self._control if parse_special else self._plain
        with panics_refused(field):
            return tokenizer.encode(text, add_special_tokens=add_special)

    def lacking(self, added: Sequence[AddedToken]) -> tuple[AddedToken, ...]:
        """Return those of `added` that this tokenizer does not have."""
        return tuple(token for token in added if self._control.id_to_token(token.id) is None)

    def token_of(self, text: str) -> int | None:
        """Return the id of the token named `text`; None if there is none."""
        found: int | None = self._control.token_to_id(text)
        return None if found is None or found in self._extra_tokens.tokens else found

    def bytes_of(self, token: int) -> bytes:
        """Return the UTF-8 bytes of `token`, which may be part of a character."""
        return b"" if token in self._extra_tokens.tokens else self._bytes.of(token)

    def text_of(self, tokens: Sequence[int], *, skip_special: bool = False) -> str:
        """Return the text of `tokens`, with control tokens by name, or skipped."""
        known = [token for token in tokens if token not in self._extra_tokens.tokens]
        return str(self._control.decode(known, skip_special_tokens=skip_special))

    def decoder(
        self,
        prompt: Sequence[int],
        *,
        skip_special: bool,
        ends: Set[int] = frozenset(),
        shown: Set[int] = frozenset(),
    ) -> "TextDecoder":
        """Return a decoder for what follows `prompt`.

        Args:
            prompt: The tokens before.
            skip_special: Whether control tokens are left out of the text.
            ends: Tokens that count as control tokens, even if the tokenizer does not say so.
            shown: Control tokens that appear in the text in any case.
        """
        silent = (self._special | ends) - shown if skip_special else frozenset[int]()
        if self._extra_tokens.tokens:  # the base may have an id for which there is no text
            silent |= set(self._extra_tokens.tokens)
        return TextDecoder(self._control, prompt, silent)


def check_unbroken(text: str, field: str) -> None:
    """Check that `text`, of the request field `field`, has no very long run without white space.

    Raises:
        InvalidArgumentError: It has one.
    """
    longest = max(map(len, text.split()), default=0)
    if longest > MAX_UNBROKEN:
        message = f"has {longest} characters without white space; expected at most {MAX_UNBROKEN}"
        raise wrong(field, message)


@contextmanager
def panics_refused(field: str) -> Iterator[None]:
    """Turn anything the library raises for a text of `field` into an error of the caller.

    Raises:
        InvalidArgumentError: The text cannot be tokenized.
    """
    try:
        yield
    # A panic in the library is a BaseException, and must not stop a server that others use.
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        raise wrong(field, "cannot be tokenized") from None


def _load(tokenizer_json: str) -> Tokenizer:
    tokenizer = Tokenizer.from_str(tokenizer_json)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _plain(tokenizer: Tokenizer, tokenizer_json: str) -> Tokenizer:
    """Return a copy of `tokenizer`, of `tokenizer_json`, to which control tokens are plain text."""
    plain = twin_of(tokenizer)
    plain.encode_special_tokens = True
    special = {
        token: about.content
        for token, about in tokenizer.get_added_tokens_decoder().items()
        if about.special and about.content != getattr(tokenizer.model, "unk_token", None)
    }
    if not finds_control_tokens(plain, special):
        return plain
    return _load(json.dumps(hide_control_tokens(json.loads(tokenizer_json), special.keys())))


def twin_of(tokenizer: Tokenizer) -> Tokenizer:
    """Return a copy that shares all parts, as a large vocabulary takes tens of megabytes."""
    twin = Tokenizer(tokenizer.model)
    for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        setattr(twin, part, getattr(tokenizer, part))
    twin.add_tokens([token for _, token in sorted(tokenizer.get_added_tokens_decoder().items())])
    assert twin.get_added_tokens_decoder().keys() == tokenizer.get_added_tokens_decoder().keys()
    return twin


def _add(tokenizer: Tokenizer, added: Sequence[AddedToken]) -> list[AddedToken]:
    """Add those of `added` that are missing, and return them.

    Raises:
        ValueError: Their ids do not continue those of the tokenizer.
    """
    new = []
    for token in added:
        there = tokenizer.id_to_token(token.id)
        if there is None:
            new.append(token)
        elif there != token.content:
            raise ValueError(f"token {token.id} is {token.content!r}; in the base it is {there!r}")
    tokenizer.add_tokens([
        LibraryToken(
            token.content, special=token.special, lstrip=token.lstrip, rstrip=token.rstrip,
            normalized=token.normalized, single_word=token.single_word,
        )
        for token in new
    ])  # fmt: skip
    for token in new:
        if (found := tokenizer.token_to_id(token.content)) != token.id:
            raise ValueError(
                f"token {token.content!r} has id {token.id}, but {found} in the base's tokenizer"
            )
    return new
