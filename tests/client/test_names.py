"""The servers that a target stands for."""

import pytest

from loramux._channel import address, addresses
from loramux._routing.names import (
    MIN_SECONDS,
    REFRESH_SECONDS,
    DnsName,
    addresses_of_name,
    dns_host_and_port,
)
from loramux.errors import InvalidArgumentError


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("dns:///servers:50051", ("servers", 50051)),
        ("dns:servers:50051", ("servers", 50051)),
        ("dns:///[::1]:1", ("::1", 1)),
        ("dns://8.8.8.8/servers:50051", None),
        ("servers:50051", None),
        ("unix:///run/x", None),
    ],
)
def test_names_are_looked_up_where_their_addresses_can_be_known(
    target: str, expected: tuple[str, int] | None
) -> None:
    assert dns_host_and_port(target) == expected
    assert (addresses(target) is None) == (expected is None)


def test_several_targets_are_the_servers_and_one_needs_no_choice() -> None:
    found = addresses(["b:1", "a:1", "b:1"])
    assert found is not None
    assert found.known == ("b:1", "a:1")
    assert addresses(["a:1"]) is None


@pytest.mark.parametrize(
    ("target", "wanted"),
    [
        ("http://a:1", "HOST:PORT without a scheme, such as a:1"),
        (
            "grpcs://models.example.org:443",
            "HOST:PORT without a scheme, such as models.example.org:443",
        ),
        ("127.0.0.1:65536", "a port from 1 to 65535"),
        ("dns:///servers:99999", "a port from 1 to 65535"),
    ],
)
def test_what_would_be_another_host_or_port_is_refused(target: str, wanted: str) -> None:
    for targets in (target, ["localhost:1", target]):
        with pytest.raises(InvalidArgumentError) as caught:
            address(targets)
        assert str(caught.value) == f"target is {target!r}; expected {wanted}"
        assert caught.value.field == "target"


@pytest.mark.parametrize(
    "target",
    ["a:65535", "models.example.org", "[::1]:1", "dns:///a:1", "unix:///run/x", "unix:x:99999"],
)
def test_other_targets_are_what_grpc_makes_of_them(target: str) -> None:
    assert address(target) == target


class Book:
    """Names, as they are written into it."""

    def __init__(self) -> None:
        self.found: list[str] = ["10.0.0.2", "10.0.0.1"]
        self.num_asked = 0
        self.name = DnsName("servers", 50051, self._look_up, aside=lambda work: work())

    def _look_up(self, host: str, port: int) -> list[str]:
        assert (host, port) == ("servers", 50051)
        self.num_asked += 1
        if not self.found:
            raise OSError("no such name")
        return self.found

    def known(self, now: float) -> tuple[str, ...]:
        self.name.refresh(now)
        return self.name.known


def test_a_name_is_looked_up_now_and_then() -> None:
    book = Book()
    first = book.known(100.0)
    assert first == ("10.0.0.1:50051", "10.0.0.2:50051")
    book.found = ["10.0.0.1", "fd00::3"]
    assert book.known(99.0 + REFRESH_SECONDS) is first
    assert book.known(100.0 + REFRESH_SECONDS) == ("10.0.0.1:50051", "[fd00::3]:50051")
    assert book.num_asked == 2


def test_a_name_is_looked_up_sooner_when_a_server_is_lost() -> None:
    book = Book()
    book.known(100.0)
    book.found = ["10.0.0.1"]
    for _ in range(10):
        book.name.refresh_soon()
        book.known(99.0 + MIN_SECONDS)
    assert book.num_asked == 1
    assert book.known(100.0 + MIN_SECONDS) == ("10.0.0.1:50051",)


def test_servers_stay_where_their_name_cannot_be_found() -> None:
    book = Book()
    first = book.known(100.0)
    book.found = []
    assert book.known(100.0 + REFRESH_SECONDS) is first
    book.found = ["10.0.0.9"]
    assert book.known(100.0 + REFRESH_SECONDS + MIN_SECONDS) == ("10.0.0.9:50051",)


def test_a_host_of_this_machine_is_found_with_addresses_of_one_kind() -> None:
    found = addresses_of_name("localhost", 50051)
    assert found
    assert len({":" in ip for ip in found}) == 1
