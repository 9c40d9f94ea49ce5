"""The processes of tensor parallelism, as seen from their leader.

The leader starts the followers and commands them. When one of them ends or hangs, the leader ends:
the frontend then restarts all of them. Followers end when the leader does.
"""

import itertools
import logging
import os
import queue
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import NoReturn, Protocol, Self

import torch

from loramux_server.engine.batch import Batch
from loramux_server.engine.commands import (
    Allocate,
    Command,
    Divide,
    Done,
    Load,
    Run,
    Write,
    decode_done,
    encode,
)
from loramux_server.engine.fault import ExplainedError
from loramux_server.kernels import shard_group
from loramux_server.lora.shard import Shard
from loramux_server.models.servable import UnservableModelError
from loramux_server.wire.adapter_source import AdapterSource
from loramux_server.wire.channel import read_message, write_message
from loramux_server.wire.engine_config import EngineConfig
from loramux_server.wire.engine_sizes import EngineSizes

_log = logging.getLogger(__name__)

_END_SECONDS = 5
"""How long a follower has to end once its channel is closed."""


class Runner(Protocol):
    """What runs this process's part of a step."""

    def run(self, batch: Batch) -> torch.Tensor:
        """Return the logits of the rows that need them."""

    def read(self, batch: Batch) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return the same, and the results of `batch.read`, one each."""


class Team:
    """Owns the followers and the channels to them; use it in a `with`."""

    def __init__(self, config: EngineConfig) -> None:
        self.shard = Shard(0, config.tensor_parallel)
        """This process's shard of the model."""
        self._folder = tempfile.mkdtemp(prefix="loramux-")
        self.meeting = Path(self._folder) / "meeting"
        """Rendezvous file of the processes."""
        self._config = config
        self._followers: list[_Follower] = []
        self._numbers = itertools.count(1)
        self._answers: dict[int, queue.SimpleQueue[Done]] = {0: queue.SimpleQueue()}
        self._lock = threading.Lock()
        self._is_ending = False

    def __enter__(self) -> Self:
        """Start the followers, which begin to load the model at once."""
        for index in range(1, self.shard.count):
            follower = _Follower()
            self._followers.append(follower)
            follower.send(Load(self._config, index, str(self.meeting)))
            threading.Thread(
                target=self._listen, args=(follower,), name="follower", daemon=True
            ).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop the followers."""
        self._is_ending = True
        for follower in self._followers:
            follower.end()
        shard_group.leave()
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def pids(self) -> list[int]:
        """Process ids of the followers."""
        return [follower.pid for follower in self._followers]

    @contextmanager
    def loading(self) -> Iterator[None]:
        """Wait at the end of the block until the followers have loaded the model too.

        Raises:
            UnservableModelError: One of them cannot.
        """
        yield
        self._wait()

    @contextmanager
    def dividing(self) -> Iterator[None]:
        """Let the followers keep their shards of the model while the block does the same.

        Raises:
            UnservableModelError: One of them cannot.
        """
        self._send_all(Divide())
        yield
        self._wait()

    @contextmanager
    def allocating(self, num_slots: int, sizes: EngineSizes) -> Iterator[None]:
        """Let the followers allocate memory while the block does the same.

        Raises:
            UnservableModelError: One of them cannot.
        """
        self._send_all(Allocate(num_slots, sizes))
        yield
        self._wait()

    @contextmanager
    def writing(self, source: AdapterSource, row: int) -> Iterator[None]:
        """Let the followers copy an adapter to `row` while the block does the same.

        Raises:
            ExplainedError: One of them cannot load it.
        """
        number = next(self._numbers)
        answers = self._answers[number] = queue.SimpleQueue()
        self._send_all(Write(number, row, source))
        try:
            yield
        finally:
            # The rows must not be reused while any process writes to them.
            found = [self._answer(answers) for _ in self._followers]
            del self._answers[number]
        for done in found:
            if done.problem is not None:
                raise ExplainedError(done.reason, done.problem)

    def running(self, runner: Runner) -> Runner:
        """Return a runner of steps on all processes, with `runner` for this one."""
        return _TeamRunner(self, runner)

    def start_step(self, batch: Batch) -> None:
        """Let the followers run their part of a step."""
        self._send_all(Run.of(batch.input))

    def _send_all(self, command: Command) -> None:
        with self._lock:
            for follower in self._followers:
                try:
                    follower.send(command)
                except ConnectionError:
                    self._die(f"follower {follower.pid} ended")

    def _wait(self) -> None:
        """Wait until every follower has acknowledged a command without a number."""
        for _ in self._followers:
            # No timeout: loading a model may take any time.
            problem = self._answers[0].get().problem
            if problem is not None:
                raise UnservableModelError(problem)

    def _answer(self, answers: "queue.SimpleQueue[Done]") -> Done:
        try:
            return answers.get(timeout=shard_group.MAX_WAIT.total_seconds())
        except queue.Empty:
            self._die("a follower hangs while loading an adapter")

    def _listen(self, follower: "_Follower") -> None:
        while (done := follower.receive()) is not None:
            self._answers[done.number].put(done)
        if not self._is_ending:
            self._die(f"follower {follower.pid} ended")

    def _die(self, why: str) -> NoReturn:
        """End this process, even if it is blocked in an all-reduce with the others."""
        _log.error("%s: the engine ends", why)
        shutil.rmtree(self._folder, ignore_errors=True)
        os._exit(1)


class _Follower:
    """One follower and the channel to it."""

    def __init__(self) -> None:
        self._ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "loramux_server.engine.follower",
                    str(theirs.fileno()),
                ],
                pass_fds=[theirs.fileno()],
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, command: Command) -> None:
        """Send a command."""
        write_message(self._ours, encode(command))

    def receive(self) -> Done | None:
        """Return the next acknowledgement, or None once the follower is gone."""
        try:
            message = read_message(self._ours)
        except ConnectionError:
            return None
        return None if message is None else decode_done(message)

    def end(self) -> None:
        """Close the channel, at which it ends; kill it if it does not."""
        with suppress(OSError):  # it may have ended already
            self._ours.shutdown(socket.SHUT_RDWR)
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._ours.close()


class _TeamRunner:
    """Runs steps on all processes."""

    def __init__(self, team: Team, runner: Runner) -> None:
        self._team = team
        self._runner = runner

    def run(self, batch: Batch) -> torch.Tensor:
        """Return the logits of the rows that need them, float32, as [R, V]."""
        self._team.start_step(batch)
        return self._runner.run(batch)

    def read(self, batch: Batch) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return the same, and the results of `batch.read`, one each, on the host."""
        self._team.start_step(batch)
        return self._runner.read(batch)
