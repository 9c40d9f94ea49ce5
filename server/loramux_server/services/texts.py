"""Tokenization of a request's texts, with the tokenizer of the base model or of an adapter."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from loramux.errors import InvalidArgumentError
from loramux_server.field_errors import wrong
from loramux_server.services.vocabularies import Vocabularies
from loramux_server.store.package_settings import PackageSettings
from loramux_server.text.tokenizer import OFF_LOOP, Span, TextPair, TextTokenizer

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Text:
    """A tokenized text."""

    tokens: list[int]
    places: list[Span | None]
    """Span of each token in the text; None if it comes from no text, or if there are two texts."""
    second_from: int = 0
    """Index at which the second of two texts begins, if they differ in token type; else 0."""

    @staticmethod
    def of_pair(pair: TextPair) -> "Text":
        """Return the tokens of `pair` as one text."""
        return Text(pair.tokens, [None] * len(pair.tokens), second_from(pair))


class Texts:
    """Tokenizes texts; long ones in a thread."""

    def __init__(self, vocabularies: Vocabularies) -> None:
        self._vocabularies = vocabularies

    async def tokens(
        self,
        text: str,
        field: str,
        settings: PackageSettings,
        *,
        parse_special: bool,
        add_special: bool,
    ) -> list[int]:
        """Return the tokens of `text`, the request field `field`, for the adapter with `settings`.

        Raises:
            InvalidArgumentError: It cannot be tokenized.
        """
        encode = partial(
            (await self._tokenizer(settings)).encode, text, field, parse_special=parse_special,
            add_special=add_special,
        )  # fmt: skip
        return await _encode(encode, len(text))

    async def tokens_of_each(
        self,
        texts: Sequence[tuple[str, str]],
        settings: PackageSettings,
        *,
        parse_special: bool,
    ) -> list[list[int]]:
        """Return the tokens of each of `texts`, without added special tokens.

        Args:
            texts: Pairs of a request field and its text.
            settings: Those of the adapter.
            parse_special: Whether text such as `</s>` is a control token.

        Raises:
            InvalidArgumentError: One cannot be tokenized.
        """
        encode = (await self._tokenizer(settings)).encode

        def encode_all() -> list[list[int]]:
            return [
                encode(text, field, parse_special=parse_special, add_special=False)
                for field, text in texts
            ]

        return await _encode(encode_all, sum(len(text) for _, text in texts))

    async def placed(
        self,
        text: str,
        field: str,
        settings: PackageSettings,
        *,
        parse_special: bool,
        add_special: bool,
    ) -> Text:
        """Return the same with the span of each token in `text`.

        Raises:
            InvalidArgumentError: There are no tokens, or it cannot be tokenized.
        """
        encode = partial(
            (await self._tokenizer(settings)).encode_placed, text, field,
            parse_special=parse_special, add_special=add_special,
        )  # fmt: skip
        found = await _encode(encode, len(text))
        if not found[0]:
            raise no_tokens(field)
        return Text(*found)

    async def pair(
        self,
        texts: tuple[str, str],
        fields: tuple[str, str],
        settings: PackageSettings,
        *,
        parse_special: bool,
        add_special: bool,
    ) -> TextPair:
        """Return the tokens of two texts, the request fields `fields`, as the tokenizer joins them.

        Raises:
            InvalidArgumentError: They cannot be tokenized.
        """
        encode = partial(
            (await self._tokenizer(settings)).encode_pair, texts, fields,
            parse_special=parse_special, add_special=add_special,
        )  # fmt: skip
        return await _encode(encode, sum(map(len, texts)))

    async def _tokenizer(self, settings: PackageSettings) -> TextTokenizer:
        tokenizer = await self._vocabularies.tokenizer(settings)
        assert tokenizer is not None
        return tokenizer


async def _encode(encode: Callable[[], T], num_characters: int) -> T:
    """Run `encode` on a text of so many characters: here, or in a thread if it is long."""
    return encode() if num_characters < OFF_LOOP else await asyncio.to_thread(encode)


def second_from(pair: TextPair) -> int:
    """Return the index of the first token of type 1 in `pair`; 0 if there is none."""
    return next((place for place, kind in enumerate(pair.places.type_ids) if kind == 1), 0)


def no_tokens(field: str) -> InvalidArgumentError:
    """Return the error for a text of the request field `field` that has no tokens."""
    return wrong(field, "has no tokens: the tokenizer encodes this text to none")
