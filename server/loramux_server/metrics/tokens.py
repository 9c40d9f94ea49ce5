"""Token metrics: plain numbers, since they are counted far more often than read."""

import time
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import accumulate

from prometheus_client.metrics_core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString


class TokenSeries:
    """The token counts of one adapter label. Changed on the event loop only."""

    def __init__(self, bounds: Sequence[float]) -> None:
        """Begin at 0; `bounds` are the ascending upper bounds of the gap buckets, in seconds."""
        self.created = time.time()
        self.num_tokens = 0
        self.gap_seconds = 0.0
        """The sum of all gaps."""
        self.num_gaps = [0] * (len(bounds) + 1)
        """Gaps per bucket, not cumulative; the last one is above all bounds."""
        self._bounds = bounds

    def add(self, num_tokens: int, num_gaps: int, gap: float) -> None:
        """Count tokens, and the gaps before them, of `gap` seconds each."""
        self.num_tokens += num_tokens
        self.gap_seconds += num_gaps * gap
        self.num_gaps[bisect_left(self._bounds, gap)] += num_gaps


class TokenMetrics(Collector):
    """The token series by adapter label, converted to metrics at each scrape."""

    def __init__(self, bounds: Sequence[float]) -> None:
        """Begin without series; see `TokenSeries` for `bounds`."""
        self._bounds = bounds
        self._series: dict[str, TokenSeries] = {}

    def of(self, label: str) -> TokenSeries:
        """Return the series of `label`, created if there is none."""
        if label not in self._series:
            self._series[label] = TokenSeries(self._bounds)
        return self._series[label]

    def forget(self, label: str) -> None:
        """Remove the series of `label`, if there is one."""
        self._series.pop(label, None)

    def describe(self) -> Iterable[Metric]:
        """Return the metrics without samples."""
        return self._metrics()

    def collect(self) -> Iterable[Metric]:
        """Return the current metrics. Thread-safe."""
        generated, gaps = metrics = self._metrics()
        bounds = [*map(floatToGoString, self._bounds), "+Inf"]
        for label, series in list(self._series.items()):
            generated.add_metric([label], series.num_tokens, series.created)
            counts = accumulate(list(series.num_gaps))
            gaps.add_metric([label], list(zip(bounds, counts, strict=True)), series.gap_seconds)
            gaps.add_sample(f"{gaps.name}_created", {"adapter": label}, series.created)
        return metrics

    def _metrics(self) -> tuple[CounterMetricFamily, HistogramMetricFamily]:
        labels = ["adapter"]
        return (
            CounterMetricFamily("loramux_generated_tokens", "Tokens generated.", labels=labels),
            HistogramMetricFamily(
                "loramux_inter_token_seconds", "Time between consecutive tokens of a completion.",
                labels=labels,
            ),
        )  # fmt: skip
