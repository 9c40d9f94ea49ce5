"""The engine process: `python -m loramux_server.engine.process FD`, started by the frontend.

FD is one end of a socket pair that the process inherits. The first message on it is the config;
when the other end closes, the process ends.
"""

import faulthandler
import os
import queue
import signal
import socket
import sys
import threading
from contextlib import closing, nullcontext, suppress

import torch

from loramux._json_lines import set_up_logging
from loramux_server.engine.allowance import num_cores
from loramux_server.engine.build import build_engine
from loramux_server.engine.fit import NoRoomError
from loramux_server.engine.model_part import load_model
from loramux_server.engine.one_gpu import restrict_to_one_gpu
from loramux_server.engine.out_of_memory import exit_on_out_of_memory
from loramux_server.engine.residents import loader_threads
from loramux_server.engine.team import Team
from loramux_server.memory_tuning import pin_mmap_threshold, trim_and_retain
from loramux_server.models.servable import UnservableModelError
from loramux_server.wire.channel import read_message, write_message
from loramux_server.wire.engine_config import EngineConfig, decode_config
from loramux_server.wire.messages import (
    OutOfMemory,
    Ready,
    StartFailed,
    ToEngine,
    decode_to_engine,
    encode,
)

_SWITCH_SECONDS = 2e-4
"""How long a load may hold the GIL while a step waits for it; the default is half of a step."""


class Inbox:
    """Messages from the frontend, read by a thread of its own."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._queue: queue.SimpleQueue[ToEngine | None] = queue.SimpleQueue()
        self.is_awaited = False
        """Whether somebody takes messages. Until then the process exits if the connection closes: a
        model that is still loading would hold memory that the next engine needs."""
        self.is_closed = False
        """Whether nothing more will come: the frontend is gone, or reading failed."""
        self.error: Exception | None = None
        """Why reading failed, if it did."""
        threading.Thread(target=self._read, name="inbox", daemon=True).start()

    def wake(self) -> None:
        """Make a waiting `take` return."""
        self._queue.put(None)

    def take(self, *, wait: bool) -> list[ToEngine]:
        """Return what has arrived; with `wait`, first wait for a message or a wake."""
        messages: list[ToEngine | None] = []
        if wait:
            messages.append(self._queue.get())
        while not self._queue.empty():
            messages.append(self._queue.get())
        return [message for message in messages if message is not None]

    def _read(self) -> None:
        try:
            with suppress(ConnectionError):  # this, too, means that the frontend is gone
                while (message := read_message(self._connection)) is not None:
                    self._queue.put(decode_to_engine(message))
        except Exception as error:  # for the thread that serves to raise
            self.error = error
        finally:
            if not self.is_awaited:
                os._exit(0)
            self.is_closed = True
            self.wake()


def serve(connection: socket.socket, config: EngineConfig) -> None:
    """Load the model, report that it is ready, and step until the frontend is gone.

    Raises:
        UnservableModelError: The model cannot be served with this config.
    """
    set_threads(config)
    pin_mmap_threshold()
    with Team(config) if config.tensor_parallel > 1 else nullcontext() as team:
        _serve(connection, config, team)


def _serve(connection: socket.socket, config: EngineConfig, team: Team | None) -> None:
    inbox = Inbox(connection)
    model = load_model(config, team)
    with loader_threads(device=model.device) as executor:
        engine, info = build_engine(model, config, executor, inbox.wake, team)
        trim_and_retain()
        inbox.is_awaited = True
        write_message(connection, encode(Ready(info)))
        with exit_on_out_of_memory(connection), closing(engine):
            while not inbox.is_closed:
                engine.receive(inbox.take(wait=not engine.can_step))
                write_message(connection, encode(engine.step()))
            if inbox.error:
                raise inbox.error


def set_threads(config: EngineConfig) -> None:
    """Limit this process to its share of the cores, and let threads switch often enough."""
    torch.set_num_threads(max(1, (config.threads or num_cores()) // config.tensor_parallel))
    sys.setswitchinterval(_SWITCH_SECONDS)


def inherited_socket(name: str) -> socket.socket:
    """Return the inherited socket, set up logging as `name`, and ignore terminating signals."""
    # Ctrl-C, systemd's SIGTERM and the end of a terminal reach the whole process group; it is the
    # frontend that decides when the engine ends.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    set_up_logging(name)
    return socket.socket(fileno=int(sys.argv[1]))


def main() -> int:
    """Serve on the inherited socket and return the exit code."""
    faulthandler.enable()  # a crash in compiled code prints a traceback
    connection = inherited_socket("engine")
    first = read_message(connection)
    if first is None:
        return 0
    try:
        serve(connection, restrict_to_one_gpu(decode_config(first)))
    except NoRoomError as error:  # there may be enough later
        write_message(connection, encode(OutOfMemory(str(error))))
        return 1
    except UnservableModelError as error:
        write_message(connection, encode(StartFailed(str(error))))
        return 1
    except BrokenPipeError:
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
