"""What becomes of a stream when its reader takes its time, without sockets."""

import asyncio
from collections.abc import AsyncGenerator

import pytest
from google.protobuf.message import Message

from loramux.errors import ResourceExhaustedError
from loramux.v1.generation_pb2 import StreamGenerateResponse
from loramux_server.engine_link.mailbox import MAX_UNREAD
from loramux_server.transport.slow_readers import SlowReaderGuard
from loramux_server.wire.messages import Cancel, Finish, Logprobs, Pause, Resume, Token
from tests.server.test_streaming import TOKEN, Served, begun

PATIENCE = 0.1


class Stream:
    """Two messages on their way to a reader who takes one whenever a test says so."""

    def __init__(self) -> None:
        self.may_take = asyncio.Semaphore(0)
        self.taken: list[Message] = []
        self.ended_with: BaseException | None = None
        self.reported: list[str] = []
        reader_guard = SlowReaderGuard(PATIENCE, lambda: self.reported.append("counted"))
        self.task = asyncio.ensure_future(
            reader_guard.send(self._messages(), self._write, lambda: self.reported.append("lost"))
        )

    async def _messages(self) -> AsyncGenerator[Message, None]:
        try:
            yield StreamGenerateResponse(request_id="first")
            yield StreamGenerateResponse(request_id="second")
        except BaseException as error:
            self.ended_with = error
            raise

    async def _write(self, message: Message) -> None:
        await self.may_take.acquire()
        self.taken.append(message)


async def test_a_reader_that_takes_messages_in_time_gets_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 0.0  # on a clock of its own: a busy machine would be late by itself
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: now)
    stream = Stream()
    for _ in range(2):
        await asyncio.sleep(0)
        now += 0.6 * PATIENCE
        for _ in range(3):  # for whatever is due
            await asyncio.sleep(0)
        stream.may_take.release()
    await stream.task
    assert len(stream.taken) == 2
    assert stream.reported == []


async def test_what_makes_the_messages_ends_before_the_reader_is_back() -> None:
    stream = Stream()
    async with asyncio.timeout(60):
        while not stream.reported:  # noqa: ASYNC110 - nothing to await
            await asyncio.sleep(0.01)
    assert isinstance(stream.ended_with, ResourceExhaustedError)
    assert stream.ended_with.reason == "READER_TOO_SLOW"
    assert stream.reported == ["counted", "lost"]
    assert not stream.task.done()
    stream.may_take.release()
    with pytest.raises(ResourceExhaustedError, match="read nothing from the stream"):
        await stream.task
    assert len(stream.taken) == 1


async def test_a_reader_that_goes_away_ends_its_stream_as_ever() -> None:
    stream = Stream()
    await asyncio.sleep(0)
    stream.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stream.task
    await asyncio.sleep(2 * PATIENCE)
    assert isinstance(stream.ended_with, GeneratorExit)
    assert stream.reported == []


@pytest.mark.parametrize("num_top", [0, 20])
async def test_who_is_too_far_behind_is_paused_until_it_takes_what_came(num_top: int) -> None:
    served = Served()
    stream = served.stream(n=2)
    await begun(served, stream)
    one, other = served.engine.ids
    logprobs = Logprobs(0.0, [(number, 0.0) for number in range(num_top)]) if num_top else None
    for _ in range(MAX_UNREAD // (1 + num_top)):
        served.engine.report(Token(one, TOKEN, None, logprobs))
    assert not paused(served)
    served.engine.report(Token(other, TOKEN, None, logprobs))
    served.engine.report(Token(one, TOKEN, None, logprobs))  # of a step that had begun
    assert paused(served) == [Pause(one), Pause(other)]
    num_tokens = len((await anext(stream)).delta.token_ids)
    assert paused(served)[2:] == [Resume(one), Resume(other)]
    num_tokens += len((await anext(stream)).delta.token_ids)
    assert num_tokens == MAX_UNREAD // (1 + num_top) + 2


async def test_who_has_ended_is_not_paused() -> None:
    served = Served()
    stream = served.stream(n=2)
    await begun(served, stream)
    one, other = served.engine.ids
    served.engine.report(Token(one, TOKEN, Finish.LENGTH))
    for _ in range(MAX_UNREAD):
        served.engine.report(Token(other, TOKEN))
    assert paused(served) == [Pause(other)]
    await stream.aclose()
    assert Cancel(other) in served.engine.sent


def paused(served: Served) -> list[object]:
    return [message for message in served.engine.sent if isinstance(message, Pause | Resume)]
