"""The metrics of each token: plain numbers, since they are counted far more often than read."""

import time
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import accumulate

from prometheus_client.metrics_core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString


class TokenSeries:
    """What is counted of the tokens of one adapter label. Lives on the event loop."""

    def __init__(self, bounds: Sequence[float]) -> None:
        """Begin at 0; `bounds` are those of the buckets of gaps, in seconds, rising."""
        self.created = time.time()
        self.num_tokens = 0
        self.gap_seconds = 0.0
        """The sum of all gaps."""
        self.num_gaps = [0] * (len(bounds) + 1)
        """Up to each bound, and above the last."""
        self._bounds = bounds

    def add(self, num_tokens: int, num_gaps: int, gap: float) -> None:
        """Count tokens, and the gaps before them, each of `gap` seconds."""
        self.num_tokens += num_tokens
        self.gap_seconds += num_gaps * gap
        self.num_gaps[bisect_left(self._bounds, gap)] += num_gaps


class TokenMetrics(Collector):
    """The series of tokens by adapter label; they become metrics for each scrape."""

    def __init__(self, bounds: Sequence[float]) -> None:
        """Begin with no series; `bounds` are those of `TokenSeries`."""
        self._bounds = bounds
        self._series: dict[str, TokenSeries] = {}

    def of(self, label: str) -> TokenSeries:
        """Return the series of `label`, a new one if there is none."""
        if label not in self._series:
            self._series[label] = TokenSeries(self._bounds)
        return self._series[label]

    def forget(self, label: str) -> None:
        """End the series of `label`, if there is one."""
        self._series.pop(label, None)

    def describe(self) -> Iterable[Metric]:
        """Return the metrics without a sample."""
        return self._metrics()

    def collect(self) -> Iterable[Metric]:
        """Return the metrics as they are now. Any thread may ask."""
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
