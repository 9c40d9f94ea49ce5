"""What is noted of a call that has several parts."""

import asyncio
from contextvars import Context

from loramux_server.observe.call_record import CallRecord, begin, current, note, part


async def one(index: int) -> None:
    with part():
        note(generation_id=f"id-{index}", prompt_tokens=10 + index)
        await asyncio.sleep(0)
        note(completion_tokens=index)


async def test_parts_add_up_and_do_not_mix() -> None:
    record = CallRecord("method", "request")
    begin(record)
    note(digest="sha256:0")
    await asyncio.gather(*map(one, range(1, 4)))
    assert current() is record
    assert record.notes == {
        "digest": "sha256:0",
        "generation_id": "id-1",
        "parts": 3,
        "prompt_tokens": 36,
        "completion_tokens": 6,
    }


def test_outside_of_a_call_nothing_is_noted() -> None:
    def outside() -> None:
        with part():
            note(prompt_tokens=1)
        assert current() is None

    Context().run(outside)
