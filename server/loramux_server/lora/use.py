"""What keeps an adapter in memory: waiting requests, leases and pins."""

from dataclasses import dataclass

from loramux_server.wire.adapter_source import AdapterSource


@dataclass(slots=True)
class Use:
    """An adapter that requests wait for or use, that is being loaded, or that is pinned."""

    source: AdapterSource
    num_waiting: int = 0
    num_leases: int = 0
    is_pinned: bool = False

    @property
    def is_only_pinned(self) -> bool:
        """Whether it is pinned, and no request waits for it or uses it."""
        return self.is_pinned and not (self.num_waiting or self.num_leases)
