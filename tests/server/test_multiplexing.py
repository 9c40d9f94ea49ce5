"""Many requests on one stream: beside each other, bounded, and ended together."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

import pytest

from loramux.errors import ResourceExhaustedError
from loramux_server.transport.multiplexing import multiplexed

Piece = tuple[int, int]
"""A request, and which piece of the answer to it."""


class Answers:
    """Answers a number with as many pieces, each when it is let go on."""

    def __init__(self) -> None:
        self.under_way: set[int] = set()
        self.most = 0
        self.num_made = 0
        self.may_go_on = asyncio.Event()
        self.may_go_on.set()

    async def of(self, request: int) -> AsyncGenerator[Piece, None]:
        self.under_way.add(request)
        self.most = max(self.most, len(self.under_way))
        try:
            for piece in range(abs(request)):
                await self.may_go_on.wait()
                await asyncio.sleep(0)
                self.num_made += 1
                yield request, piece
            if request < 0:
                raise ValueError(str(request))
        finally:
            self.under_way.discard(request)


async def given(*requests: int) -> AsyncIterator[int]:
    for request in requests:
        yield request


async def without_end(*requests: int) -> AsyncIterator[int]:
    """Yield these, and then wait for ever, as a client does that keeps its stream open."""
    for request in requests:
        yield request
    await asyncio.Event().wait()


async def read(pieces: AsyncIterator[Piece], found: list[Piece]) -> None:
    async for piece in pieces:
        found.append(piece)


async def test_requests_are_answered_beside_each_other() -> None:
    answers = Answers()
    found = [piece async for piece in multiplexed(given(3, 5, 4), answers.of, 10)]
    assert sorted(found) == sorted((r, p) for r in (3, 5, 4) for p in range(r))
    for request in (3, 5, 4):
        assert [p for r, p in found if r == request] == list(range(request))
    assert answers.most == 3


async def test_no_more_are_under_way_than_may_be() -> None:
    answers = Answers()
    found = [piece async for piece in multiplexed(given(3, 4, 5, 6, 7), answers.of, 2)]
    assert len(found) == 25
    assert answers.most == 2


async def test_nothing_is_made_that_is_not_read() -> None:
    answers = Answers()
    async with aclosing(multiplexed(given(1000, 1001), answers.of, 2)) as pieces:
        await anext(pieces)
        for _ in range(100):
            await asyncio.sleep(0)
        assert answers.num_made <= 5
    assert answers.under_way == set()


async def test_after_a_failure_the_others_end_and_no_more_are_read() -> None:
    answers = Answers()
    found: list[Piece] = []
    with pytest.raises(ValueError, match="-2"):
        await read(multiplexed(without_end(6, -2), answers.of, 10), found)
    assert sorted(found) == sorted([*((6, p) for p in range(6)), (-2, 0), (-2, 1)])


async def test_a_request_that_cannot_be_read_fails_after_the_others() -> None:
    async def broken() -> AsyncIterator[int]:
        yield 3
        raise ValueError("no request")

    answers = Answers()
    found: list[Piece] = []
    with pytest.raises(ValueError, match="no request"):
        await read(multiplexed(broken(), answers.of, 10), found)
    assert len(found) == 3


@pytest.mark.parametrize("how", ["closed", "lost", "cancelled"])
async def test_who_goes_away_ends_all(how: str) -> None:
    answers = Answers()
    pieces = multiplexed(without_end(5, 6), answers.of, 10)
    await anext(pieces)
    answers.may_go_on.clear()
    if how == "closed":
        await pieces.aclose()
    elif how == "lost":  # as a reader is that takes nothing for too long
        with pytest.raises(ResourceExhaustedError):
            await pieces.athrow(ResourceExhaustedError("too slow"))
    else:

        async def reading() -> None:
            async with aclosing(pieces):
                await read(pieces, [])

        task = asyncio.create_task(reading())
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert answers.under_way == set()
    assert len(asyncio.all_tasks()) == 1
