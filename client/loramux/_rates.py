"""Rates of a server, from two samples of its load."""

import dataclasses

from loramux.types import ServerLoad


@dataclasses.dataclass(frozen=True, slots=True)
class Rates:
    """Rates and means between two samples."""

    seconds: float
    requests_per_second: float
    tokens_per_second: float
    prompt_tokens_per_second: float
    steps_per_second: float
    mean_batch: float | None
    """Requests per step; None without steps."""
    mean_adapters: float | None
    """Distinct adapters per step; None without steps."""
    step_seconds: float | None
    first_token_seconds: float | None
    inter_token_seconds: float | None


def rates_of(before: ServerLoad, now: ServerLoad) -> Rates:
    """Return the rates between two samples of one server; since its start if it restarted."""
    is_same = now.uptime_seconds >= before.uptime_seconds

    def grown(name: str) -> float:
        return float(getattr(now, name) - (getattr(before, name) if is_same else 0))

    seconds = max(grown("uptime_seconds"), 1e-9)
    return Rates(
        seconds=seconds,
        requests_per_second=grown("requests") / seconds,
        tokens_per_second=grown("generated_tokens") / seconds,
        prompt_tokens_per_second=grown("prompt_tokens") / seconds,
        steps_per_second=grown("steps") / seconds,
        mean_batch=_mean(grown("step_requests"), grown("steps")),
        mean_adapters=_mean(grown("step_adapters"), grown("steps")),
        step_seconds=_mean(grown("step_seconds"), grown("steps")),
        first_token_seconds=_mean(grown("first_token_seconds"), grown("first_tokens")),
        inter_token_seconds=_mean(grown("gap_seconds"), grown("gaps")),
    )


def _mean(total: float, count: float) -> float | None:
    return total / count if count else None
