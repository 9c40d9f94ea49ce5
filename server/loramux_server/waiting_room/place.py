"""The place of one call in the waiting room."""

from collections.abc import Callable
from typing import Protocol

from loramux.errors import LoramuxError


class Room(Protocol):
    """What keeps the counts of its places."""

    def started(self, place: "Place") -> None:
        """Record that a completion of `place` left the engine's queue."""

    def finished(self, place: "Place", num_output: int) -> None:
        """Record that a completion of `place` ended with `num_output` tokens."""


class Place:
    """What one call occupies in the room, from its arrival to its end."""

    def __init__(
        self,
        room: Room,
        tenant: str,
        weight: int,
        num_bytes: int,
        *,
        priority: int,
        max_tokens: int,
        deadline: float,
    ) -> None:
        self._room = room
        self.tenant = tenant
        self.weight = weight
        self.priority = priority
        """Its position among the requests of its tenant: lower goes first."""
        self.num_bytes = num_bytes
        """Bytes of its message and images, until all completions have started."""
        self.max_tokens = max_tokens
        """Most tokens of a completion."""
        self.deadline = deadline
        """When it must finish, on the room's clock."""
        self.num_prompt = 0
        self.num_open = 0
        """Completions that have not ended."""
        self.num_unstarted = 0
        self.has_started = False
        """Whether any completion has started; the call cannot be evicted after that."""
        self.started_at = 0.0
        """When the last one started, on the room's clock."""
        self.on_evicted: Callable[[LoramuxError], None] | None = None

    @property
    def num_tokens(self) -> int:
        """Prompt tokens of the completions that have not started."""
        return self.num_prompt * self.num_unstarted

    def started(self) -> None:
        """Record that one completion left the engine's queue."""
        self._room.started(self)

    def finished(self, num_output: int) -> None:
        """Record that one completion ended with `num_output` tokens."""
        self._room.finished(self, num_output)
