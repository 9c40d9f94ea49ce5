"""The limits of the waiting room."""

from dataclasses import dataclass


@dataclass(slots=True)
class RoomUsage:
    """How much of the room is taken, or requested."""

    completions: int = 0
    """Those that have not ended."""
    tokens: int = 0
    """Prompt tokens of completions that have not started."""
    bytes: int = 0
    """Message bytes of calls that have not started."""

    def less(self, other: "RoomUsage") -> "RoomUsage":
        """Return the difference to `other`."""
        return RoomUsage(
            self.completions - other.completions,
            self.tokens - other.tokens,
            self.bytes - other.bytes,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RoomLimits:
    """The settings of a waiting room."""

    max_running: int
    """Completions that run at once; these do not count as waiting."""
    max_waiting: int
    """Completions that may wait beyond those."""
    max_tokens: int
    """Prompt tokens of all that have not started."""
    max_bytes: int
    """Bytes of the messages of all calls that have not started."""
    max_lag: float
    """Seconds by which the event loop may lag; 0 means no limit."""
    block_size: int
    """Tokens of a KV block."""
    num_blocks: int
    """KV blocks."""

    def over(self, taken: RoomUsage, more: RoomUsage) -> tuple[str, str] | None:
        """Return the limit that `more` would exceed and an error message; None if it fits.

        A request whose tokens or bytes exceed the limit by themselves fits if none are taken.
        """
        if taken.completions + more.completions > self.max_running + self.max_waiting:
            return "requests", f"the queue is full: {self.max_waiting} requests may wait"
        if more.tokens > 0 and taken.tokens and taken.tokens + more.tokens > self.max_tokens:
            message = f"{taken.tokens} of at most {self.max_tokens} prompt tokens are waiting"
            return "tokens", message
        if more.bytes > 0 and taken.bytes and taken.bytes + more.bytes > self.max_bytes:
            return "bytes", f"{taken.bytes} of at most {self.max_bytes} bytes are waiting"
        return None
