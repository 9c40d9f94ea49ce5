"""The usage policy of a tenant."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The limits of one tenant; None means unlimited."""

    tenant: str
    requests_per_second: float | None = None
    """Rate of new requests, with a burst of one second's worth, at least one request."""
    tokens_per_minute: int | None = None
    """Rate of prompt and completion tokens, with a burst of one minute's worth."""
    concurrent_requests: int | None = None
    """Running requests."""
    weight: int = 1
    """Its share of a busy server, relative to the weights of others."""
