"""Affinity of adapters to servers: for each adapter name an order of all servers.

The order comes from rendezvous hashing. So all clients agree on it, a server that leaves hands its
adapters to all others evenly, and one that joins takes its share and moves nothing else. A call
goes to the first server in the order that has less than its share of the calls in progress
(Mirrokni, Thorup, Zadimoghaddam: consistent hashing with bounded loads, arXiv 1608.01350).

Independent of channels: a server is a name.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from hashlib import blake2b

LOAD_FACTOR = 1.25
"""Maximum calls of a server, as a multiple of the mean."""
MIN_BOUND = 8
"""Minimum of that bound: so many calls are a small batch for any server. With fewer, chance rather
than load would move adapters."""
_CACHED = 4096

_OWN = "public/"
"""The default tenant, which references may omit."""


def adapter_name(reference: str) -> str:
    """Return the name in a reference, `[tenant/]name[:tag][@digest]`: versions share a server."""
    return reference.partition("@")[0].partition(":")[0].removeprefix(_OWN)


@lru_cache(_CACHED)
def order(adapter: str, servers: tuple[str, ...]) -> tuple[str, ...]:
    """Return `servers` in the order of their affinity to `adapter`."""

    def score(server: str) -> bytes:
        return blake2b(f"{adapter}\0{server}".encode(), digest_size=8).digest()

    return tuple(sorted(servers, key=score, reverse=True))


def bound(num_calls: int, num_servers: int) -> int:
    """Return the maximum calls of one server if all of them have `num_calls` in progress."""
    return max(MIN_BOUND, math.ceil(LOAD_FACTOR * (num_calls + 1) / num_servers))


def first_within(ordered: Sequence[str], load: Callable[[str], int]) -> str:
    """Return the first server in an adapter's order that is below the bound."""
    most = bound(sum(map(load, ordered)), len(ordered))
    # The bound is above the mean, so some server is below it.
    return next(server for server in ordered if load(server) < most)


def least_loaded(servers: Iterable[str], load: Callable[[str], int], turn: int) -> str:
    """Return the server with the fewest calls; servers with equally few take turns."""
    loads = {server: load(server) for server in servers}
    fewest = min(loads.values())
    equal = [server for server, calls in loads.items() if calls == fewest]
    return equal[turn % len(equal)]
