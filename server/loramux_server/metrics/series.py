"""Every Prometheus metric of the server, in one list."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from loramux import __version__
from loramux_server.metrics.engine import LATENCY, STEP, EngineMetrics
from loramux_server.metrics.tenants import TenantMetrics
from loramux_server.metrics.tokens import TokenMetrics
from loramux_server.metrics.top_labels import BASE, NONE, OTHER, TopLabels
from loramux_server.metrics.totals import NOTHING, Totals
from loramux_server.wire.messages import Report
from loramux_server.wire.model_info import ModelInfo

MAX_ADAPTER_LABELS = 64
STORE_FULL = "store_full"
"""Outcome of an upload that the store has no room for; a tenant's quota is another outcome."""
FAULTS = ("internal", "unknown", "data_loss", "unavailable")
"""Outcomes that are the server's fault."""
CAUSES = ("requests", "tokens", "bytes", "memory", "time", "lag", "share", "priority", "late")
"""Causes of requests that are refused because of overload."""


class Metrics:
    """The server's metrics. Only a bounded number of registered adapter names become labels."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        registry = self.registry
        adapter = ("adapter",)
        self.requests = Counter(
            "loramux_requests",
            "Requests finished, by outcome.",
            ("adapter", "outcome"),
            registry=registry,
        )
        self.prompt_tokens = Counter(
            "loramux_prompt_tokens", "Prompt tokens.", adapter, registry=registry
        )
        self.tokens = TokenMetrics(STEP)
        registry.register(self.tokens)
        self.tenants = TenantMetrics(("ok", *FAULTS))
        registry.register(self.tenants)
        self.queue = Histogram(
            "loramux_queue_seconds", "Time from arrival of a request to its first step.",
            buckets=LATENCY, registry=registry,
        )  # fmt: skip
        self.first_token = Histogram(
            "loramux_time_to_first_token_seconds",
            "Time from arrival of a request to its first token.",
            adapter, buckets=LATENCY, registry=registry,
        )  # fmt: skip
        self.duration = Histogram(
            "loramux_request_seconds", "Time from arrival of a request to its end.",
            adapter, buckets=LATENCY, registry=registry,
        )  # fmt: skip
        self.structured = Counter(
            "loramux_structured_requests",
            "Requests with structured output, by kind of constraint.",
            ("kind",), registry=registry,
        )  # fmt: skip
        self.resolved = Counter(
            "loramux_adapter_fetches",
            "Fetches of adapters that requests named (--resolve), by outcome.",
            ("outcome",),
            registry=registry,
        )
        self.uploads = Counter(
            "loramux_uploads", "Uploads finished, by outcome.", ("outcome",), registry=registry
        )
        self.registered = Gauge(
            "loramux_adapters_registered", "Adapters registered.", registry=registry
        )
        self.leases = Gauge(
            "loramux_adapter_leases", "Leases that requests and uploads hold on stored adapters.",
            registry=registry,
        )  # fmt: skip
        self.quarantined = Gauge(
            "loramux_quarantined",
            "Requests and adapters in quarantine: refused until an operator clears "
            "them.", registry=registry,
        )  # fmt: skip
        self.primary_up = Gauge(
            "loramux_primary_up",
            "1 while a replica is in sync with its primary, else 0.", ("target",),
            registry=registry,
        )  # fmt: skip
        self.tasks = Gauge(
            "loramux_loop_tasks", "asyncio tasks on the frontend's event loop.", registry=registry
        )
        self.memory = Gauge(
            "loramux_resident_memory_bytes",
            "Resident memory of the frontend and engine processes, without "
            "tensor-parallel followers.",
            ("process",), registry=registry,
        )  # fmt: skip
        self.spans = Counter(
            "loramux_spans",
            "Trace spans by outcome: exported, failed, or dropped because the "
            "queue was full.",
            ("outcome",), registry=registry,
        )  # fmt: skip
        self.room = AdmissionMetrics(registry)
        self.lost_readers = Counter(
            "loramux_streams_unread", "Streams ended because their client did not read them.",
            registry=registry,
        )  # fmt: skip
        self.engine_up = Gauge(
            "loramux_engine_up", "1 while the engine is up, else 0.", registry=registry
        )
        self.engine_starts = Counter(
            "loramux_engine_starts", "Engine starts, the first included.", registry=registry
        )
        self._info = Gauge(
            "loramux_info", "Version of the server and its base model; always 1.",
            ("version", "base_model", "architecture", "dtype", "device"), registry=registry,
        )  # fmt: skip
        self.labels = TopLabels(MAX_ADAPTER_LABELS, self._end_series)
        self._per_adapter = (self.prompt_tokens, self.first_token, self.duration, self.requests)
        self._series: dict[str, AdapterSeries] = {}
        self._engine = EngineMetrics(registry)
        self._begin()
        self.totals = Totals()
        """Totals over all adapters."""

    def describe(self, model: ModelInfo) -> None:
        """Set the info metric and the engine's capacities for the loaded `model`."""
        self._info.labels(
            __version__, model.name, model.architecture, model.dtype, model.device
        ).set(1)
        self._engine.describe(model)

    def of(self, adapter: str) -> "AdapterSeries":
        """Return the current series for requests for `adapter`; empty stands for the base."""
        label = self.labels.label(adapter)
        series = self._series.get(label)
        if series is None:
            series = self._series[label] = AdapterSeries(self, label)
        return series

    def report(self, report: Report) -> None:
        """Update the metrics from the report of one engine step."""
        self._engine.report(report)
        self.totals.report(report)

    def engine_ready(self, is_ready: bool) -> None:
        """Record that the engine is ready, or that it died."""
        self.engine_up.set(is_ready)
        if is_ready:
            self.engine_starts.inc()
        else:
            self._engine.ended()
            self.totals.engine = NOTHING

    def _begin(self) -> None:
        """Create the series of alerts at 0: Prometheus sees no increase in one that begins at 1."""
        for outcome in ("ok", *FAULTS):
            for label in (BASE, NONE, OTHER):
                self.requests.labels(label, outcome)
        for outcome in ("ok", *FAULTS, STORE_FULL):
            self.uploads.labels(outcome)
        for cause in CAUSES:
            self.room.shed.labels(cause)

    def _end_series(self, name: str) -> None:
        self._series.pop(name, None)
        self.tokens.forget(name)
        for metric in self._per_adapter:
            metric.remove_by_labels({"adapter": name})


class AdapterSeries:
    """The metrics of one label value, looked up once: a lookup takes longer than counting."""

    def __init__(self, metrics: Metrics, label: str) -> None:
        self.tokens = metrics.tokens.of(label)
        self.prompt_tokens = metrics.prompt_tokens.labels(label)
        self.first_token = metrics.first_token.labels(label)
        self.duration = metrics.duration.labels(label)


class AdmissionMetrics:
    """What waits for the engine, and requests refused because of overload."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.shed = Counter(
            "loramux_requests_shed",
            "Requests refused because of overload, by cause: requests, tokens or "
            "bytes (queue limits); memory or time (the deadline could not be met); share (a "
            "tenant's share of the queue); priority (better requests of the tenant came); lag "
            "(event loop lag); late (the deadline became unreachable while waiting).",
            ("cause",), registry=registry,
        )  # fmt: skip
        self.tokens = Gauge(
            "loramux_waiting_prompt_tokens", "Prompt tokens of requests that have not started.",
            registry=registry,
        )  # fmt: skip
        self.bytes = Gauge(
            "loramux_waiting_bytes", "Bytes of requests that have not started.", registry=registry
        )
        self.lag = Gauge(
            "loramux_loop_lag_seconds",
            "Current lag of the frontend's event loop.",
            registry=registry,
        )
