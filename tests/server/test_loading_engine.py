"""An engine process whose model is still loading."""

import socket
import subprocess
import sys

from loramux_server.wire.channel import write_message
from loramux_server.wire.engine_config import EngineConfig
from loramux_server.wire.messages import encode

STILL_LOADING = """
import threading
from loramux_server.engine import process

def load(config, team):
    connection.send(b"l")
    threading.Event().wait()

process.load_model = load
connection = process.inherited_socket("engine")
process.serve(connection, process.decode_config(process.read_message(connection)))
"""


def test_it_ends_with_its_frontend() -> None:
    """A server that is started again finds the memory free."""
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            engine = subprocess.Popen(
                [sys.executable, "-c", STILL_LOADING, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
            )
        write_message(ours, encode(EngineConfig(model="")))
        assert ours.recv(1) == b"l"
    assert engine.wait(timeout=60) == 0
