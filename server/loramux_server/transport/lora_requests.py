"""Adapter residency as a metric, for load balancers that route by adapter."""

import time
from collections.abc import Callable, Iterable, Iterator

from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from loramux_server.statuses import Statuses
from loramux_server.store.record import AdapterRecord

MAX_NAMES = 256
"""Limit of adapter names in a label, since a server may hold thousands."""


class LoraRequests(Collector):
    """The metric `loramux_lora_requests_info`, which names adapters in its labels.

    Kubernetes' Gateway API inference extension reads it from model servers; vLLM has it as
    `vllm:lora_requests_info`. It is a single series whose value is the time, created for each
    scrape, so that no outdated series remain.
    """

    def __init__(
        self,
        statuses: Statuses,
        with_digest: Callable[[str], list[AdapterRecord]],
        *,
        max_adapters: int,
    ) -> None:
        """Initialize.

        Args:
            statuses: Which adapters are on the device, and which requests wait for.
            with_digest: Returns the versions with a digest; called from any thread.
            max_adapters: The maximum number of adapters in a batch.
        """
        self._statuses = statuses
        self._with_digest = with_digest
        self._max_adapters = max_adapters

    def describe(self) -> Iterable[Metric]:
        """Return the metric without a sample."""
        return [self._metric()]

    def collect(self) -> Iterable[Metric]:
        """Return the current metric. Thread-safe."""
        metric = self._metric()
        labels = [
            str(self._max_adapters),
            self._names(self._statuses.on_device()),
            self._names(self._statuses.waited_for()),
        ]
        metric.add_metric(labels, time.time())
        return [metric]

    def _metric(self) -> GaugeMetricFamily:
        return GaugeMetricFamily(
            "loramux_lora_requests_info",
            "Unix time of this sample. Labels: the maximum number of adapters in a batch, and the "
            "names of adapters on the device and of those that requests wait for.",
            labels=["max_lora", "running_lora_adapters", "waiting_lora_adapters"],
        )

    def _names(self, digests: list[str]) -> str:
        """Return the names of adapters with `digests`, up to MAX_NAMES, separated by commas."""
        names: dict[str, None] = {}
        for name in self._names_of(digests):
            if len(names) == MAX_NAMES:
                break
            names[name] = None
        return ",".join(names)

    def _names_of(self, digests: list[str]) -> Iterator[str]:
        for digest in digests:
            for record in self._with_digest(digest):
                yield record.full_name
