"""The conversations that show how a template writes calls, in the order in which they are tried."""

import asyncio
from collections.abc import Awaitable, Callable, Set
from dataclasses import replace
from typing import TypeAlias

import msgspec

from loramux_server.chat.encoder import Vocabulary
from loramux_server.chat.messages import Piece, Talk
from loramux_server.tools.addressed import AddressedSyntax, addressed_of
from loramux_server.tools.conversations import (
    ANSWERING,
    ASKING,
    CALLING,
    CALLING_TWICE,
    FIRST,
    KEYS,
    STRINGS,
    VALUES,
    calling_with,
)
from loramux_server.tools.derive import syntax_of
from loramux_server.tools.derive_parameters import parameters_of
from loramux_server.tools.syntax import Parameters, ToolSyntax, joined
from loramux_server.tools.written import UnknownSyntaxError

MAX_PIECES = 2_500
"""Of what a template makes of one conversation."""

Write: TypeAlias = Callable[[Talk, bool], Awaitable[list[Piece] | None]]
"""Returns what a template makes of a conversation, with a prompt for an answer or without; None
where it refuses it or fails."""


class Probe:
    """Gives conversations to one template."""

    def __init__(self, write: Write, vocabulary: Vocabulary, ends: Set[str]) -> None:
        """Prepare.

        Args:
            write: The template.
            vocabulary: The tokenizer's added tokens.
            ends: Those that end an answer.
        """
        self._write = write
        self._vocabulary = vocabulary
        self._ends = ends

    async def syntax(self) -> ToolSyntax | AddressedSyntax:
        """Return how the template writes calls.

        Raises:
            UnknownSyntaxError: It does not, or in a way that is not known.
        """
        asking, answering = await self._taken(ASKING, prompt=True), await self._taken(ANSWERING)

        async def found(
            parameters: Parameters | None = None, *, takes_text: bool = False
        ) -> ToolSyntax:
            calling = await self._taken(_with(CALLING, takes_text=takes_text))
            twice = await self._pieces(_with(CALLING_TWICE, takes_text=takes_text))
            syntax = await asyncio.to_thread(
                syntax_of, asking, answering, calling, twice, self._vocabulary, self._ends,
                parameters,
            )  # fmt: skip
            return replace(syntax, takes_text=takes_text)

        try:
            return await found()
        except UnknownSyntaxError as error:
            fault = error
        try:
            return await found(await self._parameters(answering))
        except UnknownSyntaxError:
            pass
        try:
            if await self._wants_text():
                return await found(takes_text=True)
        except UnknownSyntaxError:
            pass
        try:
            if FIRST.name in joined(asking):
                return addressed_of(answering, await self._taken(CALLING), self._vocabulary)
        except UnknownSyntaxError:
            pass
        raise fault

    async def _parameters(self, answering: list[Piece]) -> Parameters:
        """Return how it writes arguments that are no object.

        Raises:
            UnknownSyntaxError: In a way that is not known.
        """
        calling = await self._taken(CALLING)
        with_two = await self._taken(calling_with(dict(zip(KEYS, STRINGS, strict=True))))
        with_none = await self._pieces(calling_with({}))
        with_each = [await self._taken(calling_with({KEYS[1]: value})) for value in VALUES]
        return await asyncio.to_thread(
            parameters_of, answering, calling, with_two, with_none, with_each
        )

    async def _wants_text(self) -> bool:
        """Return whether it does with arguments as if they were a text, and so not with an object.

        It fails, or writes what Python makes of an object.
        """
        found = await self._pieces(CALLING)
        return found is None or str(FIRST.arguments) in joined(found)

    async def _taken(self, talk: Talk, *, prompt: bool = False) -> list[Piece]:
        """Return what it makes of `talk`.

        Raises:
            UnknownSyntaxError: It does not take it.
        """
        found = await self._pieces(talk, prompt=prompt)
        if found is None:
            raise UnknownSyntaxError("takes no tools, or no calls of them")
        return found

    async def _pieces(self, talk: Talk, *, prompt: bool = False) -> list[Piece] | None:
        found = await self._write(talk, prompt)
        if found is not None and len(found) > MAX_PIECES:
            raise UnknownSyntaxError("writes too much around calls of tools")
        return found


def _with(talk: Talk, *, takes_text: bool) -> Talk:
    """Return `talk` with arguments as text, or as an object."""
    return msgspec.structs.replace(talk, has_text_arguments=takes_text)
