"""What one tenant may use."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What one tenant may use; None means as much as it wants."""

    tenant: str
    requests_per_second: float | None = None
    """Requests that may begin; a second's worth of them may come at once."""
    tokens_per_minute: int | None = None
    """Tokens of prompts and completions; a minute's worth of them may come at once."""
    concurrent_requests: int | None = None
    """Requests under way."""
    weight: int = 1
    """Its part of a server that is busy, beside the weights of others."""
