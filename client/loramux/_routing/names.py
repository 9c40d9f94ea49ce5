"""Addresses of the servers: a fixed list, or those that a DNS name resolves to.

Names are resolved in a background thread, so that calls never wait for it: every 30 seconds while
there are calls, and sooner after a server was lost.
"""

import ipaddress
import re
import socket
import threading
import time
from collections.abc import Callable

REFRESH_SECONDS = 30.0
MIN_SECONDS = 2.0
"""Minimum time between lookups."""

Lookup = Callable[[str, int], list[str]]
"""Resolves a host and port to IP addresses."""

_NAME = re.compile(r"dns:(///)?(?P<host>\[[^\]/]+\]|[^/:\[\]]+):(?P<port>\d+)")


def dns_host_and_port(target: str) -> tuple[str, int] | None:
    """Return host and port of a `dns:` target; None otherwise, also if it names a DNS server."""
    found = _NAME.fullmatch(target)
    return (found["host"].strip("[]"), int(found["port"])) if found else None


class Addresses:
    """The current addresses of the servers; thread-safe."""

    are_found = False
    """Whether they come from DNS, so that gRPC's own lookup may find others."""

    def __init__(self, given: tuple[str, ...]) -> None:
        """Use a fixed list."""
        self.known = given
        """`HOST:PORT` of each server; the tuple is replaced only if the addresses change."""

    def refresh(self, now: float) -> None:
        """Start a lookup if one is due; returns at once."""

    def refresh_soon(self) -> None:
        """Let the next lookup be soon, because a server was lost."""

    def wait(self, seconds: float) -> None:
        """Wait until one lookup was attempted, for at most `seconds`."""


def addresses_of_name(host: str, port: int) -> list[str]:
    """Return the IPv4 addresses of `host`, or its IPv6 addresses if it has none.

    Not both, because a host with both would count twice.

    Raises:
        OSError: The lookup failed.
    """
    infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    found = {ipaddress.ip_address(str(info[4][0]).partition("%")[0]) for info in infos}
    version = min(ip.version for ip in found)
    return [str(ip) for ip in found if ip.version == version]


def _in_a_thread(work: Callable[[], None]) -> None:
    threading.Thread(target=work, name="loramux-lookup", daemon=True).start()


class DnsName(Addresses):
    """The addresses that a DNS name resolves to."""

    are_found = True

    def __init__(
        self,
        host: str,
        port: int,
        lookup: Lookup = addresses_of_name,
        aside: Callable[[Callable[[], None]], None] = _in_a_thread,
    ) -> None:
        """Prepare lookups of `host`; `aside` runs them in the background."""
        super().__init__(())
        self._host, self._port = host, port
        self._lookup, self._aside = lookup, aside
        self._lock = threading.Lock()
        self._tried = threading.Event()
        self._last = self._due = float("-inf")
        self._is_looking = False

    def refresh(self, now: float) -> None:
        with self._lock:
            if self._is_looking or now < self._due:
                return
            self._is_looking, self._last, self._due = True, now, now + REFRESH_SECONDS
        self._aside(self._look)

    def refresh_soon(self) -> None:
        with self._lock:
            self._due = min(self._due, self._last + MIN_SECONDS)

    def wait(self, seconds: float) -> None:
        self.refresh(time.monotonic())
        self._tried.wait(seconds)

    def _look(self) -> None:
        try:
            found = tuple(sorted(map(self._place, self._lookup(self._host, self._port))))
        except (OSError, UnicodeError):
            # Keep the known addresses: a failing name server does not mean that servers are gone.
            found = ()
        with self._lock:
            if found and found != self.known:
                self.known = found
            if not found:
                self._due = self._last + MIN_SECONDS
            self._is_looking = False
        self._tried.set()

    def _place(self, ip: str) -> str:
        return f"[{ip}]:{self._port}" if ":" in ip else f"{ip}:{self._port}"
