"""The port of --listen, while the model is loaded."""

import socket

import pytest

from loramux_server.config import ConfigError, split_address
from loramux_server.transport.listener import held_port


def test_of_two_servers_that_load_the_second_has_no_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with held_port(address):
        with pytest.raises(ConfigError, match=f"--listen {address}: Address already in use"):
            held_port(address)
        with pytest.raises(OSError, match="Address already in use"):
            socket.create_server(split_address("listen", address))  # with SO_REUSEADDR
    socket.create_server(split_address("listen", address)).close()


def test_connections_of_an_earlier_server_do_not_keep_the_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as earlier:
        address = f"127.0.0.1:{earlier.getsockname()[1]}"
        with socket.create_connection(earlier.getsockname()):
            earlier.accept()[0].close()  # who closes first is left in TIME_WAIT
    held_port(address).close()
    socket.create_server(split_address("listen", address)).close()
