"""What becomes of the frontend's engine when it dies, with engines that only say they are ready."""

import asyncio
import errno
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from loramux_server.config import ConfigError
from loramux_server.engine_link.process import MAX_DEATHS, EngineProcess
from loramux_server.wire.engine_config import EngineConfig
from tests.support.polling import eventually

ENGINE = """#!{python}
import json, socket, sys
sys.path[:0] = {path}
from loramux_server.wire.channel import read_message, write_message
from loramux_server.wire.engine_config import decode_config
from loramux_server.wire.messages import OutOfMemory, Ready, encode
from loramux_server.wire.model_info import ModelInfo
from tests.support.engine_sizes import sizes_of

connection = socket.socket(fileno=int(sys.argv[3]))
config = decode_config(read_message(connection))
with open(config.model) as file:
    state = json.load(file)
if state["loads"] == "forever":
    read_message(connection)
if state["loads"] == "too much":
    write_message(connection, encode(OutOfMemory("it does not fit")))
    sys.exit(1)
sizes = sizes_of(config, free=state["free"])
write_message(connection, encode(Ready(ModelInfo(
    name="fake", architecture="Fake", fingerprint=state["fingerprint"], dtype="float32",
    device="cpu", context_length=sizes.kv_memory, vocab_size=8, num_parameters=1, eos_token_ids=[],
    tokenizer_json=None, layers={{}}, adapter_rows=8, max_running=8, num_blocks=sizes.kv_memory,
    sizes=sizes,
))))
read_message(connection)
"""


class FakeEngines:
    """Engines that serve what is written down at the moment they start."""

    def __init__(self, folder: Path) -> None:
        self.program = folder / "engine"
        self.program.write_text(ENGINE.format(python=sys.executable, path=sys.path))
        self.program.chmod(0o700)
        self._state = folder / "state.json"
        self.become()
        self.ready: list[bool] = []
        self.process = EngineProcess(
            EngineConfig(model=str(self._state)), on_report=print, on_ready=self.ready.append
        )

    def become(self, *, fingerprint: str = "a", free: int = 100, loads: str = "") -> None:
        """Be this when an engine starts the next time."""
        state = {"fingerprint": fingerprint, "free": free, "loads": loads}
        self._state.write_text(json.dumps(state))

    def kill(self) -> int:
        """Let the engine die, and return the process id that it had."""
        pid = self.process.pid
        assert pid
        os.kill(pid, signal.SIGKILL)
        return pid


@pytest.fixture
async def engines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeEngines]:
    engines = FakeEngines(tmp_path)
    monkeypatch.setattr(sys, "executable", str(engines.program))
    yield engines
    await engines.process.stop()


async def is_so(condition: Any) -> bool:
    return await asyncio.to_thread(eventually, condition)


async def test_the_next_engine_has_the_context_of_the_first(engines: FakeEngines) -> None:
    first = await engines.process.start()
    assert first.context_length == 100
    engines.become(free=10)
    pid = engines.kill()
    assert await is_so(lambda: engines.ready == [True, False, True])
    assert engines.process.pid != pid  # it says 100 as well: another one would have been refused


async def test_another_model_is_not_served_in_place_of_the_first(
    engines: FakeEngines, caplog: pytest.LogCaptureFixture
) -> None:
    await engines.process.start()
    engines.become(fingerprint="b")
    engines.kill()
    await asyncio.wait_for(engines.process.wait_failed(), 30)
    assert "its fingerprint changed" in caplog.text
    assert engines.ready == [True, False]
    assert not engines.process.is_ready
    pid = engines.process.pid
    assert pid
    assert await is_so(lambda: not psutil.pid_exists(pid))


async def test_an_engine_that_dies_again_and_again_is_given_up(engines: FakeEngines) -> None:
    await engines.process.start()
    for deaths in range(1, MAX_DEATHS + 1):
        engines.kill()
        assert await is_so(lambda deaths=deaths: len(engines.ready) >= 2 * deaths)
        if deaths < MAX_DEATHS:
            assert await is_so(lambda: engines.ready[-1])
    await asyncio.wait_for(engines.process.wait_failed(), 30)
    assert engines.ready.count(True) == MAX_DEATHS


async def test_a_lack_of_memory_ends_the_first_engine_and_is_waited_out_by_the_next(
    engines: FakeEngines, caplog: pytest.LogCaptureFixture
) -> None:
    engines.become(loads="too much")
    with pytest.raises(ConfigError, match=r"^it does not fit$"):
        await engines.process.start()
    engines.become()
    await engines.process.start()
    engines.become(loads="too much")  # as long as the one before is not gone as a whole
    engines.kill()
    assert await is_so(lambda: "it does not fit" in caplog.text)
    engines.become()
    assert await is_so(lambda: engines.ready == [True, False, True])


async def test_an_engine_is_started_again_once_there_can_be_another_process(
    engines: FakeEngines, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("loramux_server.engine_link.process.RETRY_SECONDS", 0.01)
    await engines.process.start()
    spawn, failures = asyncio.create_subprocess_exec, [errno.EAGAIN, errno.ENOMEM]

    async def failing(*arguments: Any, **options: Any) -> Any:
        if failures:
            raise OSError(failures.pop(0), "no process")
        return await spawn(*arguments, **options)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", failing)
    engines.kill()
    assert await is_so(lambda: engines.ready == [True, False, True])
    assert caplog.text.count("the engine cannot be started: no process") == 2


async def test_an_engine_that_loads_is_ended_at_once(engines: FakeEngines) -> None:
    engines.become(loads="forever")
    starting = asyncio.create_task(engines.process.start())
    assert await is_so(lambda: engines.process.pid is not None)
    pid = engines.process.pid
    assert pid
    starting.cancel()
    await asyncio.wait_for(engines.process.stop(), 30)
    assert not psutil.pid_exists(pid)
    with pytest.raises(asyncio.CancelledError):
        await starting
