"""How fast the messages of an upload have to come."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest

from loramux.errors import DeadlineExceededError
from loramux.v1.uploads_pb2 import SendChunksRequest
from loramux_server.services.adapters.chunks import Chunks

IDLE, RATE = 30.0, 10_000
WHOLE = 100_000
"""Bytes of a chunk."""


class Clock:
    """Stands still unless a test moves it."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


async def take(seconds: Sequence[float], *, work: float = 0.0, rate: int = RATE) -> int:
    """Return how many chunks were taken that come after so many seconds each."""
    clock = Clock()

    async def requests() -> AsyncIterator[SendChunksRequest]:
        for pause in seconds:
            clock.now += pause
            yield SendChunksRequest(chunk=bytes(WHOLE))

    incoming = Chunks(IDLE, rate, clock).of(requests())
    num_taken = 0
    while await incoming.next() is not None:
        clock.now += work
        num_taken += 1
    return num_taken


async def test_what_comes_fast_enough_may_take_its_time() -> None:
    assert await take([9.0] * 20) == 20
    assert await take([0.0, 25.0, 0.0, 0.0] * 5) == 20  # pauses, and as much as is asked for


async def test_what_comes_too_slowly_is_ended() -> None:
    with pytest.raises(DeadlineExceededError, match=r"received in 33.0 s; .* 10000 ") as caught:
        await take([11.0] * 20)
    assert caught.value.reason == "UPLOAD_TOO_SLOW"


async def test_a_fast_begin_is_no_credit_for_ever() -> None:
    with pytest.raises(DeadlineExceededError, match="per second"):
        await take([0.1] * 400 + [14.0] * 10)


async def test_our_own_work_is_not_held_against_the_caller() -> None:
    assert await take([1.0] * 20, work=100.0) == 20


async def test_without_a_rate_only_silence_ends_it() -> None:
    assert await take([29.0] * 20, rate=0) == 20


async def test_who_cannot_make_up_for_it_is_not_waited_for() -> None:
    async def requests() -> AsyncIterator[SendChunksRequest]:
        yield SendChunksRequest(chunk=bytes(10))
        clock.now += 0.09
        yield SendChunksRequest(chunk=bytes(10))
        await silence.wait()

    silence, clock = asyncio.Event(), Clock()
    incoming = Chunks(0.1, 1 << 40, clock).of(requests())
    await incoming.next()
    await incoming.next()
    with pytest.raises(DeadlineExceededError) as caught:
        await incoming.next()  # ended after the hundredth that is left, not after the tenth
    assert caught.value.reason == "UPLOAD_TOO_SLOW"
