"""Text -> tokens, and tokens -> text as they come."""

import json
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager
from typing import NamedTuple

from tokenizers import AddedToken as LibraryToken
from tokenizers import Encoding, Tokenizer

from loramux.errors import InvalidArgumentError
from loramux_adapters.added_tokens import AddedToken
from loramux_server.field_errors import wrong
from loramux_server.text.nameless import finds, nameless
from loramux_server.text.pieces.beyond import Beyond
from loramux_server.text.token_bytes import TokenBytes

MAX_UNBROKEN = 64 << 10
"""Longest run of characters without white space, which to some tokenizers is one word."""
OFF_LOOP = 4096
"""Characters from which a text is tokenized in a thread."""
Span = tuple[int, int]
"""First character and the one after the last, in code points."""
_MAX_CONTEXT = 6
"""Tokens at the end of a prompt that are looked at, to know whether a text goes on."""
_MAX_BYTES = 4
"""Bytes of a character in UTF-8."""
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
"""What stands for bytes that are no character, or not yet one."""


class TextPair(NamedTuple):
    """Two texts that are read as one."""

    tokens: list[int]
    places: Encoding
    """Where in which of the texts each of them is."""


class TextTokenizer:
    """The base model's tokenizer, with tokens of an adapter."""

    _control: Tokenizer
    _plain: Tokenizer

    def __init__(self, base: "str | TextTokenizer", added: Sequence[AddedToken] = ()) -> None:
        """Make it ready; to read a large vocabulary takes a second.

        Args:
            base: The base model's: its tokenizer.json, or what was made of that, to share it.
            added: An adapter's own tokens, by their ids; those that the base has are no others.

        Raises:
            ValueError: They do not follow the base's.
        """
        # Two, because whether `</s>` in a text is a control token is state of a tokenizer.
        if isinstance(base, str):
            self._control = _load(base)
            self._plain = _plain(self._control, base)
        else:
            self._control, self._plain = twin_of(base._control), twin_of(base._plain)
        self._plain.encode_special_tokens = True
        _add(self._plain, _add(self._control, added))
        self._beyond = Beyond(self._control)
        known = self._control.get_added_tokens_decoder()
        self._special = frozenset(token for token, about in known.items() if about.special)
        self._bytes = TokenBytes(self._control)

    def encode(
        self, text: str, field: str = "prompt", *, parse_special: bool, add_special: bool
    ) -> list[int]:
        """Return the tokens of `text`.

        Args:
            text: What the user wrote.
            field: The request field that it is.
            parse_special: Whether text such as `</s>` is a control token or plain text.
            add_special: Whether the tokenizer puts its own prefix before the text.

        Raises:
            InvalidArgumentError: The text cannot be tokenized.
        """
        return self._beyond.read(self._encoding(text, field, parse_special, add_special).ids)

    def encode_placed(
        self, text: str, field: str, *, parse_special: bool, add_special: bool
    ) -> tuple[list[int], list[Span | None]]:
        """Return the tokens of `text`, the request field `field`, and where in it each is.

        Tokens that share a character share its place; None stands for those that are of no text.
        The arguments, and what is raised, are else those of `encode`.
        """
        found = self._encoding(text, field, parse_special, add_special)
        is_added = found.special_tokens_mask if add_special else [0] * len(found.ids)
        places = [None if own else span for own, span in zip(is_added, found.offsets, strict=True)]
        return self._beyond.read(found.ids), places

    def encode_pair(
        self, texts: tuple[str, str], fields: tuple[str, str], *, parse_special: bool,
        add_special: bool,
    ) -> TextPair:  # fmt: skip
        """Return the tokens of two texts, joined as the tokenizer joins a pair.

        The arguments, of which `fields` are the request fields of `texts`, and what is raised, are
        else those of `encode`.
        """
        for text, field in zip(texts, fields, strict=True):
            check_unbroken(text, field)
        tokenizer = self._control if parse_special else self._plain
        try:
            with panics_refused(fields[1]):
                found = tokenizer.encode(*texts, add_special_tokens=add_special)
        except InvalidArgumentError:
            # Alone it tells whether it is the first text that cannot be tokenized.
            self._encoding(texts[0], fields[0], parse_special, add_special)
            raise
        return TextPair(self._beyond.read(found.ids), found)

    def _encoding(self, text: str, field: str, parse_special: bool, add_special: bool) -> Encoding:
        check_unbroken(text, field)
        tokenizer = self._control if parse_special else self._plain
        with panics_refused(field):
            return tokenizer.encode(text, add_special_tokens=add_special)

    def lacking(self, added: Sequence[AddedToken]) -> tuple[AddedToken, ...]:
        """Return those of `added` that this tokenizer does not have."""
        return tuple(token for token in added if self._control.id_to_token(token.id) is None)

    def token_of(self, text: str) -> int | None:
        """Return the token that is called `text`; None if there is none."""
        found: int | None = self._control.token_to_id(text)
        return None if found is None or found in self._beyond.tokens else found

    def bytes_of(self, token: int) -> bytes:
        """Return what `token` is in UTF-8, which may be a part of a character."""
        return b"" if token in self._beyond.tokens else self._bytes.of(token)

    def text_of(self, tokens: Sequence[int], *, skip_special: bool = False) -> str:
        """Return the text of `tokens`, in which control tokens have names or are left out."""
        known = [token for token in tokens if token not in self._beyond.tokens]
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
            prompt: What went before.
            skip_special: Whether control tokens give no text.
            ends: Tokens that are such, whatever the tokenizer says of them.
            shown: Control tokens that give text in either case.
        """
        silent = (self._special | ends) - shown if skip_special else frozenset[int]()
        if self._beyond.tokens:  # the base may have an id for which there is no text
            silent |= set(self._beyond.tokens)
        return TextDecoder(self._control, prompt, silent)


class TextDecoder:
    """Turns tokens into text without ever splitting a character.

    The library's own `DecodeStream` decodes everything since the last whole character again for
    each token: of bytes that never form one, which any caller can force by a bias, 20,000 took it
    52 seconds. This one looks at a few tokens only, so that a token costs the same however long
    the text is: those that gave the last piece of text, because a space may depend on them, and
    those after it.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], silent: Set[int]) -> None:
        """Decode what follows `prompt`; tokens of `silent` give no text."""
        self._tokenizer = tokenizer
        self._silent = silent
        self._window = self._context(prompt)
        self._num_given = len(self._window)
        self._given = self._decode(self._window)

    def step(self, token: int) -> str:
        """Return the text that `token` completes; empty while a character is incomplete."""
        if token in self._silent:
            return ""
        self._window.append(token)
        begin, end = self._num_given, len(self._window)
        text = self._decode(self._window)
        if text.endswith(_REPLACEMENT) or len(text) <= len(self._given):
            if end - self._num_given <= _MAX_BYTES:
                return ""
            # The first of them is no beginning of a character: that would be whole by now.
            end = self._num_given + 1
            begin = max(0, end - _MAX_BYTES)
            text = self._decode(self._window[:end])
        piece = text[len(self._given) :]
        self._window = self._window[begin:]
        self._num_given = end - begin
        self._given = self._decode(self._window[: self._num_given])
        return piece

    def _context(self, prompt: Sequence[int]) -> list[int]:
        """Return the end of `prompt`, short, but whole characters; none if it breaks one off."""
        for size in range(1, _MAX_CONTEXT + 1):
            end = [token for token in prompt[-size:] if token not in self._silent]
            text = self._decode(end)
            if text and _REPLACEMENT not in text:
                return end
        return []

    def _decode(self, tokens: list[int]) -> str:
        return self._tokenizer.decode(tokens, skip_special_tokens=False)


def check_unbroken(text: str, field: str) -> None:
    """Demand that `text`, of the request field `field`, has white space in it now and then.

    Raises:
        InvalidArgumentError: It has not.
    """
    longest = max(map(len, text.split()), default=0)
    if longest > MAX_UNBROKEN:
        said = f"has {longest} characters without white space; at most {MAX_UNBROKEN}"
        raise wrong(field, said)


@contextmanager
def panics_refused(field: str) -> Iterator[None]:
    """Turn what the library raises for a text of `field` into an error of the caller.

    Raises:
        InvalidArgumentError: The text cannot be tokenized.
    """
    try:
        yield
    # A panic in the library is a BaseException, and another user's server must not stop for it.
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
    """Return `tokenizer`, of `tokenizer_json`, as one for which control tokens are plain text."""
    plain = twin_of(tokenizer)
    plain.encode_special_tokens = True
    special = {
        token: about.content
        for token, about in tokenizer.get_added_tokens_decoder().items()
        if about.special and about.content != getattr(tokenizer.model, "unk_token", None)
    }
    if not finds(plain, special):
        return plain
    return _load(json.dumps(nameless(json.loads(tokenizer_json), special.keys())))


def twin_of(tokenizer: Tokenizer) -> Tokenizer:
    """Return another with the same parts: a large vocabulary takes tens of megabytes."""
    twin = Tokenizer(tokenizer.model)
    for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        setattr(twin, part, getattr(tokenizer, part))
    twin.add_tokens([token for _, token in sorted(tokenizer.get_added_tokens_decoder().items())])
    assert twin.get_added_tokens_decoder().keys() == tokenizer.get_added_tokens_decoder().keys()
    return twin


def _add(tokenizer: Tokenizer, added: Sequence[AddedToken]) -> list[AddedToken]:
    """Add those of `added` that are not there, and return them.

    Raises:
        ValueError: They do not follow those that are.
    """
    new = []
    for token in added:
        there = tokenizer.id_to_token(token.id)
        if there is None:
            new.append(token)
        elif there != token.content:
            raise ValueError(f"token {token.id} is {token.content!r}, that of the base {there!r}")
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
                f"token {token.content!r} has id {token.id}, but with the base's tokenizer {found}"
            )
    return new
