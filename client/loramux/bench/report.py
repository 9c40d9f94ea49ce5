"""Statistics of a benchmark run."""

from collections.abc import Sequence
from dataclasses import dataclass

from loramux.bench.load import Record


@dataclass(frozen=True, slots=True)
class Quantiles:
    """Median, 90th and 99th percentile, in milliseconds."""

    p50_ms: float
    p90_ms: float
    p99_ms: float


@dataclass(frozen=True, slots=True)
class Report:
    """The statistics of one run."""

    requests: int
    failures: int
    first_error: str | None
    seconds: float
    """From the first request sent to the last token."""
    output_tokens: int
    output_tokens_per_second: float
    requests_per_second: float
    time_to_first_token: Quantiles
    inter_token: Quantiles
    """Inter-token latency; a chunk of several tokens counts for each of them."""
    request_latency: Quantiles


def summarize(records: Sequence[Record]) -> Report:
    """Return the statistics of `records`."""
    answered = [record for record in records if record.error is None and record.chunks]
    errors = [record.error for record in records if record.error is not None]
    begin = min((record.sent for record in records), default=0.0)
    end = max((record.chunks[-1][0] for record in answered), default=begin)
    seconds = end - begin
    tokens = sum(count for record in answered for _, count in record.chunks)
    between: list[float] = []
    for record in answered:
        for (before, _), (now, count) in zip(record.chunks, record.chunks[1:], strict=False):
            between += [(now - before) / max(1, count)] * count
    return Report(
        requests=len(records),
        failures=len(errors),
        first_error=errors[0] if errors else None,
        seconds=seconds,
        output_tokens=tokens,
        output_tokens_per_second=tokens / seconds if seconds else 0.0,
        requests_per_second=len(answered) / seconds if seconds else 0.0,
        time_to_first_token=_quantiles([r.chunks[0][0] - r.sent for r in answered]),
        inter_token=_quantiles(between),
        request_latency=_quantiles([r.chunks[-1][0] - r.sent for r in answered]),
    )


def _quantiles(seconds: list[float]) -> Quantiles:
    ordered = sorted(seconds)
    return Quantiles(*(1e3 * _percentile(ordered, q) for q in (0.5, 0.9, 0.99)))


def _percentile(ordered: list[float], q: float) -> float:
    if not ordered:
        return 0.0
    place = (len(ordered) - 1) * q
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)
