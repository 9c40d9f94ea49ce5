"""Who needs an adapter in memory."""

from dataclasses import dataclass

from loramux_server.wire.adapter_source import AdapterSource


@dataclass(slots=True)
class Use:
    """An adapter that somebody waits for, uses or loads, or that is pinned."""

    source: AdapterSource
    num_waiting: int = 0
    num_leases: int = 0
    is_pinned: bool = False

    @property
    def is_only_pinned(self) -> bool:
        """Whether nobody waits for it or uses it."""
        return self.is_pinned and not (self.num_waiting or self.num_leases)
