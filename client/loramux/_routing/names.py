"""Addresses of the servers: those that were given, or those behind a name.

A name is looked up in a thread of its own, never where a call waits: every half minute as long as
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
"""From one lookup to the next, whatever is lost."""

Lookup = Callable[[str, int], list[str]]
"""Returns the IP addresses behind a host and port."""

_NAME = re.compile(r"dns:(///)?(?P<host>\[[^\]/]+\]|[^/:\[\]]+):(?P<port>\d+)")


def named(target: str) -> tuple[str, int] | None:
    """Return host and port of a `dns:` target; None for others, and where a DNS server is named."""
    found = _NAME.fullmatch(target)
    return (found["host"].strip("[]"), int(found["port"])) if found else None


class Addresses:
    """Which servers there are now; threads may share it."""

    are_found = False
    """Whether they are what a lookup found, so that gRPC may find others by its own."""

    def __init__(self, given: tuple[str, ...]) -> None:
        """Know those that were given, which stay."""
        self.known = given
        """`HOST:PORT` of each; another object only where they are others."""

    def refresh(self, now: float) -> None:
        """Look them up again if it is time; returns at once."""

    def hurry(self) -> None:
        """Look them up again soon: one of them was lost."""

    def wait(self, seconds: float) -> None:
        """Wait until it was tried once to find them, `seconds` at most."""


def addresses_of_name(host: str, port: int) -> list[str]:
    """Return the IP addresses of `host`: those of IPv4, or where it has none, of IPv6.

    A host that has both would count twice otherwise.

    Raises:
        OSError: It cannot be found.
    """
    infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    found = {ipaddress.ip_address(str(info[4][0]).partition("%")[0]) for info in infos}
    version = min(ip.version for ip in found)
    return [str(ip) for ip in found if ip.version == version]


def _in_a_thread(work: Callable[[], None]) -> None:
    threading.Thread(target=work, name="loramux-lookup", daemon=True).start()


class Name(Addresses):
    """Those behind a name."""

    are_found = True

    def __init__(
        self,
        host: str,
        port: int,
        lookup: Lookup = addresses_of_name,
        aside: Callable[[Callable[[], None]], None] = _in_a_thread,
    ) -> None:
        """Prepare to look `host` up, which `aside` does without letting anybody wait."""
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

    def hurry(self) -> None:
        with self._lock:
            self._due = min(self._due, self._last + MIN_SECONDS)

    def wait(self, seconds: float) -> None:
        self.refresh(time.monotonic())
        self._tried.wait(seconds)

    def _look(self) -> None:
        try:
            found = tuple(sorted(map(self._place, self._lookup(self._host, self._port))))
        except (OSError, UnicodeError):
            # Those that were there may well be: a name server that is away takes nobody away.
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
