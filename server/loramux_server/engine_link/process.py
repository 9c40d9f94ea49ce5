"""Supervision of the engine process: starts it, and restarts it when it dies or hangs."""

import asyncio
import contextlib
import logging
import signal
import time
from collections import deque
from collections.abc import Callable

from loramux_server.config import ConfigError
from loramux_server.engine_link.running_engine import RunningEngine
from loramux_server.engine_link.watchdog import Watchdog
from loramux_server.wire.engine_config import EngineConfig
from loramux_server.wire.messages import (
    FromEngine,
    OutOfMemory,
    Ping,
    Ready,
    Report,
    StartFailed,
    ToEngine,
)
from loramux_server.wire.model_info import ModelInfo

_log = logging.getLogger(__name__)

MAX_DEATHS = 5
DEATH_WINDOW = 60.0
"""After MAX_DEATHS within this many seconds the engine is not restarted."""
RETRY_SECONDS = 2.0
"""Pause after an engine that could not start."""
MIN_START_PATIENCE = 60.0
START_PATIENCE = 10.0
"""A replacement may take this many times as long to start as the first engine did."""


class EngineDiedError(ConfigError):
    """The engine ended before it was ready; another start may succeed."""


class EngineProcess:
    """Owns the running engine; there is one at a time."""

    def __init__(
        self,
        config: EngineConfig,
        *,
        on_report: Callable[[Report], None],
        on_ready: Callable[[bool], None],
        watchdog: float = 0.0,
    ) -> None:
        """Prepare; nothing is started yet.

        Args:
            config: Settings of the engine.
            on_report: Called with each report.
            on_ready: Called with whether the engine is ready, whenever that changes.
            watchdog: Seconds of silence after which the engine is replaced; see `Watchdog`. 0 means
                never.
        """
        self._config = config
        self._max_silence = watchdog
        self._watchdog: Watchdog | None = None
        """None before the first engine is ready, and if it is turned off."""
        self._on_report = on_report
        self._on_ready = on_ready
        self._engine: RunningEngine | None = None
        """The last engine that was started."""
        self.is_ready = False
        """Whether it accepts requests."""
        self._model: ModelInfo | None = None
        self._deaths: deque[float] = deque(maxlen=MAX_DEATHS)
        self._supervisor: asyncio.Task[None] | None = None
        self._is_stopping = False
        self.ran_out_of_memory = False
        """Whether the last engine that died reported this."""
        self._start_seconds: float | None = None
        """How long the first engine took to become ready; None before that."""

    @property
    def seconds_to_ready(self) -> float:
        """Estimated seconds until a new engine is ready, at least 1."""
        since = time.monotonic() - self._deaths[-1] if self._deaths else 0.0
        return max(1.0, (self._start_seconds or 0.0) - since)

    @property
    def pid(self) -> int | None:
        """Process id of the engine, while there is one."""
        return self._engine.pid if self._engine else None

    async def start(self) -> ModelInfo:
        """Start the engine and return what it serves.

        Raises:
            ConfigError: The engine cannot start with this config.
        """
        engine, model = await self._spawn()
        self._supervisor = asyncio.create_task(self._supervise(engine), name="engine")
        return model

    async def wait_failed(self) -> None:
        """Wait until the engine cannot be kept alive; the cause is logged."""
        assert self._supervisor is not None
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.shield(self._supervisor)

    async def stop(self) -> None:
        """Stop the engine."""
        self._is_stopping = True
        if engine := self._engine:
            if self.is_ready:
                engine.close()
            else:
                engine.kill()  # still loading: it may be slow to notice a closed socket
            try:
                await asyncio.wait_for(engine.wait(), timeout=10)
            except TimeoutError:
                engine.kill()
        if self._supervisor:
            self._supervisor.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._supervisor

    def send(self, message: ToEngine) -> None:
        """Send the engine a message; it must be ready."""
        assert self._engine is not None
        assert self.is_ready
        self._engine.send(message)

    async def _spawn(self) -> tuple[RunningEngine, ModelInfo]:
        begin = time.monotonic()
        try:
            engine = self._engine = await RunningEngine.spawn(self._config)
        except OSError as error:
            raise EngineDiedError(f"the engine cannot be started: {error.strerror}") from error
        first = await self._first_message(engine)
        if isinstance(first, Ready):
            try:
                self._keep(first.model)
            except ConfigError:
                engine.close()
                raise
            self.is_ready = True
            self._start_seconds = self._start_seconds or time.monotonic() - begin
            self._on_ready(True)
            return engine, first.model
        engine.close()
        code = await engine.wait()
        if isinstance(first, StartFailed):
            raise ConfigError(first.message)
        if isinstance(first, OutOfMemory):
            raise EngineDiedError(first.message)
        raise EngineDiedError(f"the engine ended with exit code {code} before it was ready")

    async def _first_message(self, engine: RunningEngine) -> FromEngine | None:
        """Return a new engine's first message; None if it ends or does not become ready in time."""
        patience = None
        if self._start_seconds is not None:
            patience = max(MIN_START_PATIENCE, START_PATIENCE * self._start_seconds)
        try:
            async with asyncio.timeout(patience):
                return await engine.read()
        except TimeoutError:
            _log.error("the engine was not ready within %.3g s", patience)
            engine.kill()
            return None

    def _keep(self, model: ModelInfo) -> None:
        """Require every engine to serve what the first did: callers and adapter checks rely on it.

        Raises:
            ConfigError: `model` differs from the first one.
        """
        if self._model is None:
            self._model = model
            # Left at auto, its sizes would depend on the memory that is free at the moment.
            self._config = model.sizes.in_config(self._config)
            if self._max_silence:
                self._watchdog = Watchdog(self._max_silence, model.sizes.max_batch_tokens)
            return
        changed = [
            name for name in ModelInfo.__struct_fields__
            if getattr(model, name) != getattr(self._model, name)
        ]  # fmt: skip
        if changed:
            different = ", ".join(changed)
            raise ConfigError(
                f"the base model differs from the one served before: its {different} changed"
            )

    async def _supervise(self, first: RunningEngine) -> None:
        engine: RunningEngine | None = first
        while engine:
            self.ran_out_of_memory = False
            await self._follow(engine)
            await self._clean_up(engine)
            engine = await self._start_again()

    async def _follow(self, engine: RunningEngine) -> None:
        """Forward the engine's reports until it ends or is silent for too long."""
        # If the engine hangs, nothing may keep waiting for it, least of all for its socket.
        tasks = {asyncio.create_task(self._pass_on(engine)), asyncio.create_task(self._watch())}
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
        for task in done:
            task.result()

    async def _pass_on(self, engine: RunningEngine) -> None:
        while isinstance(message := await engine.read(), Report):
            if self._watchdog:
                self._watchdog.record_report(message.batch)
            self._on_report(message)
        self.ran_out_of_memory = isinstance(message, OutOfMemory)

    async def _watch(self) -> None:
        """Return when the engine has been silent for too long."""
        watchdog = self._watchdog
        if watchdog is None:
            await asyncio.Event().wait()
            return
        watchdog.begin(time.monotonic())
        while True:
            await asyncio.sleep(watchdog.interval)
            if watchdog.poll(time.monotonic()):
                _log.error("watchdog: no heartbeat from the engine for %.3g s", watchdog.patience)
                return
            self.send(Ping())

    async def _start_again(self) -> RunningEngine | None:
        """Return a new engine, or None if it cannot be restarted."""
        while not self._is_stopping:
            is_often = len(self._deaths) == MAX_DEATHS
            if is_often and self._deaths[-1] - self._deaths[0] < DEATH_WINDOW:
                _log.error("the engine died %d times in %d s", MAX_DEATHS, DEATH_WINDOW)
                return None
            try:
                engine, _ = await self._spawn()
            except EngineDiedError as error:
                self._deaths.append(time.monotonic())
                if not self._is_stopping:
                    _log.error("%s", error)
                    await asyncio.sleep(RETRY_SECONDS)
            except ConfigError as error:
                _log.error("the engine cannot be restarted: %s", error)
                return None
            else:
                return engine
        return None

    async def _clean_up(self, engine: RunningEngine) -> None:
        """Clean up after an engine, so that the next one can start."""
        self.is_ready = False
        engine.close()
        self._deaths.append(time.monotonic())
        self._on_ready(False)
        # The socket is closed; what is left of the process must be gone before the next one starts.
        engine.kill()
        code = await engine.wait()
        if not self._is_stopping:
            _log.error("the engine died with %s", _cause(code, self.ran_out_of_memory))


def _cause(code: int, ran_out_of_memory: bool) -> str:
    """Describe an exit with `code`, which is negative for a signal."""
    if ran_out_of_memory:
        return "an out-of-memory error"
    if code == -signal.SIGKILL:
        return "SIGKILL, possibly from the kernel's out-of-memory killer"
    return f"exit code {code}"
