"""Usage metrics per tenant: plain numbers, read at each scrape."""

import time
from collections import Counter
from collections.abc import Iterable

from prometheus_client.metrics_core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from loramux.errors import LoramuxError
from loramux_server.metrics.top_labels import TopLabels

MAX_TENANT_LABELS = 64
QUOTA = "quota"
OVERLOAD = "overload"
_CAUSES = {
    "QUOTA_EXCEEDED": QUOTA,
    "QUEUE_FULL": OVERLOAD,
    "SERVER_BUSY": OVERLOAD,
    "MEMORY_UNREACHABLE": OVERLOAD,
    "DEADLINE_UNREACHABLE": OVERLOAD,
}
"""Reason of an error -> why a valid request was refused."""


class TenantSeries:
    """The counts of one tenant label. Changed on the event loop only."""

    def __init__(self, outcomes: Iterable[str]) -> None:
        """Begin at 0; `outcomes` are those that are exported even at 0."""
        self.created = time.time()
        self.prompt_tokens = 0
        self.generated_tokens = 0
        self.requests = Counter(dict.fromkeys(outcomes, 0))
        """Finished requests by outcome."""
        self.refused = Counter({QUOTA: 0, OVERLOAD: 0})
        """Refused requests by cause."""

    def ended(self, outcome: str, error: BaseException | None) -> None:
        """Count a request that ended with `outcome`, and with `error` unless that is `ok`."""
        self.requests[outcome] += 1
        if isinstance(error, LoramuxError) and error.reason in _CAUSES:
            self.refused[_CAUSES[error.reason]] += 1


class TenantMetrics(Collector):
    """The series of tenants: one each for the busiest, and one for all others."""

    def __init__(self, outcomes: Iterable[str]) -> None:
        """Begin without series; see `TenantSeries` for `outcomes`."""
        self._outcomes = tuple(outcomes)
        self._labels = TopLabels(MAX_TENANT_LABELS, self._end)
        self._series: dict[str, TenantSeries] = {}

    def arrived(self, tenant: str) -> None:
        """Count a request of `tenant`, which is authenticated, for the choice of labels."""
        self._labels.count(tenant)

    def of(self, tenant: str) -> TenantSeries:
        """Return the current series for requests of `tenant`."""
        label = self._labels.label(tenant)
        series = self._series.get(label)
        if series is None:
            series = self._series[label] = TenantSeries(self._outcomes)
        return series

    def describe(self) -> Iterable[Metric]:
        """Return the metrics without samples."""
        return self._metrics()

    def collect(self) -> Iterable[Metric]:
        """Return the current metrics. Thread-safe."""
        requests, refused, prompt, generated = metrics = self._metrics()
        for label, series in list(self._series.items()):
            for outcome, count in list(series.requests.items()):
                requests.add_metric([label, outcome], count, series.created)
            for cause, count in list(series.refused.items()):
                refused.add_metric([label, cause], count, series.created)
            prompt.add_metric([label], series.prompt_tokens, series.created)
            generated.add_metric([label], series.generated_tokens, series.created)
        return metrics

    def _end(self, label: str) -> None:
        self._series.pop(label, None)

    def _metrics(
        self,
    ) -> tuple[CounterMetricFamily, CounterMetricFamily, CounterMetricFamily, CounterMetricFamily]:
        return (
            CounterMetricFamily(
                "loramux_tenant_requests", "Requests finished, by tenant and outcome.",
                labels=["tenant", "outcome"],
            ),
            CounterMetricFamily(
                "loramux_tenant_requests_refused",
                "Requests refused, by tenant and cause: quota (that of the tenant) or overload "
                "(of the server).",
                labels=["tenant", "cause"],
            ),
            CounterMetricFamily(
                "loramux_tenant_prompt_tokens", "Prompt tokens, by tenant.", labels=["tenant"]
            ),
            CounterMetricFamily(
                "loramux_tenant_generated_tokens", "Tokens generated, by tenant.",
                labels=["tenant"],
            ),
        )  # fmt: skip
