"""Tables of registered adapters."""

import datetime
from collections.abc import Sequence

from rich.table import Table

from loramux.types import Adapter

_SHOWN_TARGETS = 2
"""Maximum number of target modules that are named without `wide`."""


def property_table(adapters: Sequence[Adapter], *, wide: bool) -> Table:
    """Return a table of properties; with `wide`, with all target modules and the digest."""
    table = Table(box=None, pad_edge=False)
    table.add_column("name", no_wrap=True, min_width=_longest(adapters))
    table.add_column("aliases")
    table.add_column("rank", justify="right", no_wrap=True)
    table.add_column("targets", no_wrap=wide)
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("state")
    table.add_column("source")
    if wide:
        table.add_column("digest", no_wrap=True)
    for adapter in adapters:
        names = adapter.target_modules
        is_short = wide or len(names) <= _SHOWN_TARGETS
        table.add_row(
            adapter.reference,
            " ".join(adapter.aliases),
            str(adapter.rank),
            " ".join(names) if is_short else f"{len(names)} modules",
            f"{adapter.size_bytes / 1e6:.1f} MB",
            state_of(adapter),
            adapter.source,
            *([adapter.digest] if wide else []),
        )
    return table


def usage_table(adapters: Sequence[Adapter]) -> Table:
    """Return a table of usage statistics."""
    table = Table(box=None, pad_edge=False)
    table.add_column("name", no_wrap=True, min_width=_longest(adapters))
    table.add_column("state")
    for heading in ("memory", "in flight", "requests", "hits", "loads"):
        table.add_column(heading, justify="right")
    table.add_column("last used")
    for adapter in adapters:
        status = adapter.status
        numbers = (status.calls, status.requests, status.hits, status.loads)
        table.add_row(
            adapter.reference,
            state_of(adapter),
            f"{status.memory_bytes / 1e6:.1f} MB",
            *map(str, numbers),
            when(status.last_used_at),
        )
    return table


def state_of(adapter: Adapter) -> str:
    """Return the residency of an adapter in words."""
    status = adapter.status
    return (
        adapter.tier
        + (", loading" if status.is_loading else "")
        + (", pinned" if adapter.is_pinned else "")
        + (f", until {when(adapter.expires_at)}" if adapter.expires_at else "")
        + (f", failed: {status.load_failure}" if status.load_failure else "")
    )


def when(moment: datetime.datetime | None) -> str:
    """Format a time in local time; `never` for None."""
    return moment.astimezone().isoformat(sep=" ", timespec="seconds")[:19] if moment else "never"


def _longest(adapters: Sequence[Adapter]) -> int:
    return max((len(adapter.reference) for adapter in adapters), default=0)
