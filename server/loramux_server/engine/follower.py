"""A follower: `python -m loramux_server.engine.follower FD`, started by the engine process.

It holds a shard of the base model and executes commands (`loramux_server.engine.commands`). FD is
one end of a socket pair that the process inherits; when the other end closes, the process ends.
"""

import os
import queue
import shutil
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

from loramux_server.engine.batch import Batch
from loramux_server.engine.build import make_runner, storage_format_of
from loramux_server.engine.commands import (
    Allocate,
    Command,
    Divide,
    Done,
    Load,
    Run,
    Write,
    decode_command,
    encode,
)
from loramux_server.engine.fault import explained
from loramux_server.engine.loader import AdapterLoader
from loramux_server.engine.model_part import divide, load_whole
from loramux_server.engine.model_runner import ModelRunner
from loramux_server.engine.operations import backend_of
from loramux_server.engine.process import inherited_socket, set_threads
from loramux_server.engine.residents import loader_threads
from loramux_server.lora.segments import Residence
from loramux_server.lora.shard import Shard
from loramux_server.memory_tuning import pin_mmap_threshold, trim_and_retain
from loramux_server.models.servable import UnservableModelError
from loramux_server.wire.channel import read_message, write_message


class Leader:
    """The leader, as a follower sees it."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._commands: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._lock = threading.Lock()
        threading.Thread(target=self._read, name="commands", daemon=True).start()

    def take(self) -> Command:
        """Wait for the next command and return it."""
        return self._commands.get()

    def say(self, done: Done) -> None:
        """Acknowledge a command; callable on any thread."""
        with self._lock:
            write_message(self._connection, encode(done))

    def _read(self) -> None:
        meeting: Path | None = None
        try:
            while (message := read_message(self._connection)) is not None:
                command = decode_command(message)
                if isinstance(command, Load):
                    meeting = Path(command.meeting)
                self._commands.put(command)
        finally:
            if meeting:  # a leader that was killed left it behind
                shutil.rmtree(meeting.parent, ignore_errors=True)
            # The current step may wait in an all-reduce with a leader that is gone.
            os._exit(0)


class Part:
    """This process's shard of the model, ready to run."""

    def __init__(self, runner: ModelRunner, loader: AdapterLoader, device: torch.device) -> None:
        self.device = device
        """Where it runs."""
        self._runner = runner
        self._loader = loader
        self._residence: dict[int, Residence] = {}
        """First row -> the adapter that was written there last."""

    def run(self, command: Run) -> None:
        """Run this process's part of a step."""
        self._runner.run(Batch(command.input(self._residence.__getitem__), []))

    def write(self, command: Write, say: Callable[[Done], None]) -> None:
        """Read an adapter, copy its shard to its rows, acknowledge it; called on loader threads.

        The acknowledgement says why it failed. If there is no memory even for that, the process
        ends, since the leader waits for it.
        """
        try:
            say(self._written(command))
        except BaseException:
            os._exit(1)

    def _written(self, command: Write) -> Done:
        source, row = command.source, command.row
        try:
            adapter = self._loader.load(source)
            self._loader.write(source, row, adapter)
            self._residence[row] = adapter.at(row)
        except Exception as error:
            reason, problem = explained(error, f"loading {source.digest}")
            return Done(command.number, problem, reason)
        return Done(command.number)


def prepare(leader: Leader) -> Part:
    """Load the model and keep a shard of it, as the leader commands.

    Raises:
        UnservableModelError: The model cannot be served with this config.
    """
    load = leader.take()
    assert isinstance(load, Load)
    config, shard = load.config, Shard(load.index, load.config.tensor_parallel)
    set_threads(config)
    pin_mmap_threshold()
    model = load_whole(config, shard)
    leader.say(Done())
    command = leader.take()
    assert isinstance(command, Divide)
    model = divide(model, config, shard, Path(load.meeting))
    leader.say(Done())
    command = leader.take()
    assert isinstance(command, Allocate)
    config = command.sizes.in_config(config)
    runner = make_runner(model, config, backend_of(config, model), command.num_slots)
    loader = AdapterLoader(model, runner.slab, storage_format_of(runner, config))
    trim_and_retain()
    leader.say(Done())
    return Part(runner, loader, model.device)


def follow(leader: Leader) -> None:
    """Execute the leader's commands until it is gone, which ends the process.

    Raises:
        UnservableModelError: The model cannot be served with this config.
    """
    part = prepare(leader)
    with loader_threads(device=part.device) as executor:
        while True:
            command = leader.take()
            if isinstance(command, Run):
                part.run(command)
            elif isinstance(command, Write):
                executor.submit(part.write, command, leader.say)


def main() -> None:
    """Follow the leader on the inherited socket."""
    leader = Leader(inherited_socket("follower"))
    try:
        follow(leader)
    except UnservableModelError as error:
        with suppress(ConnectionError):  # the leader may have found out first, and ended
            leader.say(Done(problem=str(error)))
        # The leader reports the reason before it ends, and this process ends with it.
        threading.Event().wait()


if __name__ == "__main__":
    main()
