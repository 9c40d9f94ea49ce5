"""Finding the syntax of a template's calls by rendering conversations, one form after another."""

import asyncio
from collections.abc import Awaitable, Callable, Set
from dataclasses import replace
from typing import TypeAlias

import msgspec

from loramux_server.chat.encoder import Vocabulary
from loramux_server.chat.messages import Conversation, Piece
from loramux_server.tools.addressed import AddressedSyntax, addressed_of
from loramux_server.tools.conversations import (
    ANSWERING,
    ASKING,
    AWKWARD,
    CALLING,
    CALLING_TWICE,
    FIRST,
    KEYS,
    NAMED_CALLING,
    NAMED_CALLING_TWICE,
    STRINGS,
    VALUES,
    calling_with,
    thoughtful,
)
from loramux_server.tools.derive import Renderings, syntax_of
from loramux_server.tools.derive_code import code_of
from loramux_server.tools.derive_parameters import parameters_of
from loramux_server.tools.rendered_text import RenderedText, UnknownSyntaxError, unreadable
from loramux_server.tools.syntax import Code, Parameters, ToolSyntax, joined

MAX_PIECES = 2_500
"""Most pieces of one rendered conversation."""

Write: TypeAlias = Callable[[Conversation, bool], Awaitable[list[Piece] | None]]
"""Renders a conversation with a template, with or without the generation prompt; returns None if
the template rejects it or fails."""


class Probe:
    """Renders conversations with one template."""

    def __init__(self, write: Write, vocabulary: Vocabulary, ends: Set[str]) -> None:
        """Prepare.

        Args:
            write: Renders with the template.
            vocabulary: The tokenizer's added tokens.
            ends: Those that end an answer.
        """
        self._write = write
        self._vocabulary = vocabulary
        self._ends = ends

    async def syntax(self) -> ToolSyntax | AddressedSyntax:
        """Return how the template writes calls.

        Raises:
            UnknownSyntaxError: It writes none, or in an unsupported syntax.
        """
        asking, answering = await self._taken(ASKING, prompt=True), await self._taken(ANSWERING)

        async def found(
            arguments: Parameters | Code | None = None,
            calling: Conversation = CALLING,
            twice: Conversation = CALLING_TWICE,
        ) -> ToolSyntax:
            renderings = Renderings(
                asking, answering, await self._taken(calling), await self._pieces(twice),
                await self._pieces(thoughtful(calling)),
            )  # fmt: skip
            calls = calling.messages[-1].calls + twice.messages[-1].calls[1:]
            return await asyncio.to_thread(
                syntax_of, renderings, self._vocabulary, self._ends, arguments, calls
            )

        async def with_object() -> ToolSyntax:
            return await found()

        async def with_parameters() -> ToolSyntax:
            return await found(await self._parameters(answering))

        async def with_code() -> ToolSyntax:
            return await found(await self._code(answering))

        async def with_text() -> ToolSyntax:
            if not await self._wants_text():
                raise unreadable()
            conversations = [_with_text(conversation) for conversation in (CALLING, CALLING_TWICE)]
            return replace(await found(None, *conversations), takes_text=True)

        async def with_name_in_id() -> ToolSyntax:
            plain = joined(answering)
            if (
                FIRST.name
                in RenderedText(await self._taken(CALLING)).after_common_prefix(plain).text
            ):
                raise unreadable()
            return await found(None, NAMED_CALLING, NAMED_CALLING_TWICE)

        async def addressed() -> AddressedSyntax:
            if FIRST.name not in joined(asking):
                raise unreadable()
            return addressed_of(answering, await self._taken(CALLING), self._vocabulary)

        ways: list[Callable[[], Awaitable[ToolSyntax | AddressedSyntax]]] = [
            with_object,
            with_parameters,
            with_code,
            with_text,
            with_name_in_id,
            addressed,
        ]
        faults = []
        for way in ways:
            try:
                return await way()
            except UnknownSyntaxError as error:
                faults.append(error)
        raise faults[0]

    async def _parameters(self, answering: list[Piece]) -> Parameters:
        """Return how the template writes arguments one by one.

        Raises:
            UnknownSyntaxError: It does not, or in an unsupported syntax.
        """
        return await asyncio.to_thread(
            parameters_of, answering, await self._taken(CALLING), await self._with_two(),
            await self._with_none(), await self._with_each(),
        )  # fmt: skip

    async def _code(self, answering: list[Piece]) -> Code:
        """Return how the template writes arguments as code.

        Raises:
            UnknownSyntaxError: It does not, or in an unsupported syntax.
        """
        return await asyncio.to_thread(
            code_of, answering, await self._with_two(), await self._with_none(),
            await self._with_each(), await self._taken(calling_with({KEYS[1]: AWKWARD})),
        )  # fmt: skip

    async def _with_two(self) -> list[Piece]:
        return await self._taken(calling_with(dict(zip(KEYS, STRINGS, strict=True))))

    async def _with_none(self) -> list[Piece] | None:
        return await self._pieces(calling_with({}))

    async def _with_each(self) -> list[list[Piece]]:
        return [await self._taken(calling_with({KEYS[1]: value})) for value in VALUES]

    async def _wants_text(self) -> bool:
        """Return whether the template expects arguments as a string.

        Given an object, it fails or writes its Python repr.
        """
        found = await self._pieces(CALLING)
        return found is None or str(FIRST.arguments) in joined(found)

    async def _taken(self, conversation: Conversation, *, prompt: bool = False) -> list[Piece]:
        """Return `conversation` as rendered by the template.

        Raises:
            UnknownSyntaxError: It rejects the conversation or fails.
        """
        found = await self._pieces(conversation, prompt=prompt)
        if found is None:
            raise UnknownSyntaxError("rejects tools or tool calls")
        return found

    async def _pieces(
        self, conversation: Conversation, *, prompt: bool = False
    ) -> list[Piece] | None:
        found = await self._write(conversation, prompt)
        if found is not None and len(found) > MAX_PIECES:
            raise UnknownSyntaxError("writes too much text around tool calls")
        return found


def _with_text(conversation: Conversation) -> Conversation:
    """Return `conversation` with arguments as strings."""
    return msgspec.structs.replace(conversation, has_text_arguments=True)
