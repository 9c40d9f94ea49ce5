"""The order of requests by priority, which is a matter of each tenant alone."""

from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar


class Prioritized(Protocol):
    """A request, or whatever stands for one or several of the same priority."""

    @property
    def tenant(self) -> str:
        """The tenant whose it is."""

    @property
    def priority(self) -> int:
        """A 32-bit integer; lower goes first."""


T = TypeVar("T", bound=Prioritized)


def ranked(requests: Iterable[T]) -> list[T]:
    """Return `requests` with those of each tenant sorted by priority.

    A tenant keeps the positions that its requests have in the given order; only which of them is
    at which position changes. So no choice of priorities moves the request of another tenant.
    Equal priorities keep their order.
    """
    given = list(requests)
    if len({request.priority for request in given}) < 2:
        return given
    lines: dict[str, list[T]] = {}
    for request in sorted(given, key=lambda request: request.priority):
        lines.setdefault(request.tenant, []).append(request)
    next_of: dict[str, Iterator[T]] = {tenant: iter(line) for tenant, line in lines.items()}
    return [next(next_of[request.tenant]) for request in given]
