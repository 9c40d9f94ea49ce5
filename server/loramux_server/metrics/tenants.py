"""The metrics of each tenant, to meter its use: plain numbers, which a scrape reads."""

import time
from collections import Counter
from collections.abc import Iterable

from prometheus_client.metrics_core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from loramux.errors import LoramuxError
from loramux_server.metrics.adapter_labels import AdapterLabels

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
"""Reason of an error -> why a request was refused that was valid."""


class TenantSeries:
    """What is counted of one tenant label. Lives on the event loop."""

    def __init__(self, outcomes: Iterable[str]) -> None:
        """Begin at 0, with the `outcomes` that are shown before there are any."""
        self.created = time.time()
        self.prompt_tokens = 0
        self.generated_tokens = 0
        self.requests = Counter(dict.fromkeys(outcomes, 0))
        """Finished requests by outcome."""
        self.refused = Counter({QUOTA: 0, OVERLOAD: 0})
        """Refused requests by cause."""

    def ended(self, outcome: str, error: BaseException | None) -> None:
        """Count a request that ended with `outcome`, because of `error` if that is not `ok`."""
        self.requests[outcome] += 1
        if isinstance(error, LoramuxError) and error.reason in _CAUSES:
            self.refused[_CAUSES[error.reason]] += 1


class TenantMetrics(Collector):
    """The series of tenants: of the busiest by name, of all others together."""

    def __init__(self, outcomes: Iterable[str]) -> None:
        """Begin with no series; see `TenantSeries` for `outcomes`."""
        self._outcomes = tuple(outcomes)
        self._labels = AdapterLabels(MAX_TENANT_LABELS, self._end)
        self._series: dict[str, TenantSeries] = {}

    def arrived(self, tenant: str) -> None:
        """Note a request of `tenant`, which has a key or a certificate."""
        self._labels.count(tenant)

    def of(self, tenant: str) -> TenantSeries:
        """Return what to count a request of `tenant` in, at this moment."""
        label = self._labels.label(tenant)
        series = self._series.get(label)
        if series is None:
            series = self._series[label] = TenantSeries(self._outcomes)
        return series

    def describe(self) -> Iterable[Metric]:
        """Return the metrics without a sample."""
        return self._metrics()

    def collect(self) -> Iterable[Metric]:
        """Return the metrics as they are now. Any thread may ask."""
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
