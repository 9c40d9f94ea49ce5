"""Tasks beside the calls."""

import asyncio

import pytest

from loramux_server.tasks import in_background


async def test_work_in_the_background_that_fails_is_logged_at_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def watch() -> None:
        raise LookupError("nothing is there")

    task = in_background(watch())
    await asyncio.wait([task])
    await asyncio.sleep(0)
    assert "watch" in caplog.text
    assert "nothing is there" in caplog.text
