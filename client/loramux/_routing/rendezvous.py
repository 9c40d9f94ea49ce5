"""Which of several servers has an adapter: for each name an order of all servers.

The order is that of rendezvous hashing, so every client finds the same one, a server that leaves
gives its adapters to all others alike, and one that comes takes its share and moves nothing else.
A call goes to the first server of the order that has not more than its part of the calls under
way (Mirrokni, Thorup, Zadimoghaddam: consistent hashing with bounded loads, arXiv 1608.01350).

Knows nothing of channels: a server is a name.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from hashlib import blake2b

LOAD_FACTOR = 1.25
"""A server has at most so many times the calls that each would have if all had the same."""
MIN_BOUND = 8
"""So many calls at once are a small batch for any server, whatever the others have: below it,
chance and not load would decide how many adapters move."""
_CACHED = 4096

_OWN = "public/"
"""May be left out of a name."""


def adapter_name(reference: str) -> str:
    """Return the name in a reference, `[tenant/]name[:tag][@digest]`: versions stay together."""
    return reference.partition("@")[0].partition(":")[0].removeprefix(_OWN)


@lru_cache(_CACHED)
def order(adapter: str, servers: tuple[str, ...]) -> tuple[str, ...]:
    """Return `servers` in the order in which calls for `adapter` try them."""

    def score(server: str) -> bytes:
        return blake2b(f"{adapter}\0{server}".encode(), digest_size=8).digest()

    return tuple(sorted(servers, key=score, reverse=True))


def bound(num_calls: int, num_servers: int) -> int:
    """Return how many calls a server may have, where `num_calls` are under way at all of them."""
    return max(MIN_BOUND, math.ceil(LOAD_FACTOR * (num_calls + 1) / num_servers))


def first_within(ordered: Sequence[str], load: Callable[[str], int]) -> str:
    """Return the first server of an adapter's order that may take one call more."""
    most = bound(sum(map(load, ordered)), len(ordered))
    # The bound is above the mean, so that somebody is below it.
    return next(server for server in ordered if load(server) < most)


def least_loaded(servers: Iterable[str], load: Callable[[str], int], turn: int) -> str:
    """Return the server with the fewest calls; those that have as many take turns."""
    loads = {server: load(server) for server in servers}
    fewest = min(loads.values())
    equal = [server for server, calls in loads.items() if calls == fewest]
    return equal[turn % len(equal)]
