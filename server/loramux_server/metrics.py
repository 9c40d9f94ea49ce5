"""Every Prometheus metric of the server, in one list."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from loramux import __version__
from loramux_server.adapter_labels import AdapterLabels
from loramux_server.engine.messages import CacheStats, ModelInfo, Report
from loramux_server.totals import NOTHING, Totals

MAX_ADAPTER_LABELS = 64

_LATENCY = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_STEP = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_TOKENS = (1, 4, 16, 64, 128, 256, 512, 1024, 2048, 4096)


class Metrics:
    """The server's metrics. Only registered adapter names become labels, and a bounded number."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        registry = self.registry
        adapter = ("adapter",)
        self.requests = Counter(
            "loramux_requests", "Requests that ended.", ("adapter", "outcome"), registry=registry
        )
        self.prompt_tokens = Counter(
            "loramux_prompt_tokens", "Prompt tokens.", adapter, registry=registry
        )
        self.generated_tokens = Counter(
            "loramux_generated_tokens", "Tokens generated.", adapter, registry=registry
        )
        self.queue = Histogram(
            "loramux_queue_seconds", "Time from arrival to the first run.",
            buckets=_LATENCY, registry=registry,
        )  # fmt: skip
        self.first_token = Histogram(
            "loramux_time_to_first_token_seconds", "Time from arrival to the first token.",
            adapter, buckets=_LATENCY, registry=registry,
        )  # fmt: skip
        self.inter_token = Histogram(
            "loramux_inter_token_seconds", "Time between tokens of a completion.",
            adapter, buckets=_STEP, registry=registry,
        )  # fmt: skip
        self.duration = Histogram(
            "loramux_request_seconds", "Time from arrival to the end.",
            adapter, buckets=_LATENCY, registry=registry,
        )  # fmt: skip
        self.structured = Counter(
            "loramux_structured_requests", "Requests whose text had to have a form, by its kind.",
            ("kind",), registry=registry,
        )  # fmt: skip
        self.uploads = Counter(
            "loramux_uploads", "Uploads that ended.", ("outcome",), registry=registry
        )
        self.registered = Gauge(
            "loramux_adapters_registered", "Adapters that requests can name.", registry=registry
        )
        self.leases = Gauge(
            "loramux_adapter_leases", "Requests and uploads that keep bytes of adapters.",
            registry=registry,
        )  # fmt: skip
        self.tasks = Gauge(
            "loramux_loop_tasks", "Tasks of the frontend's event loop.", registry=registry
        )
        self.spans = Counter(
            "loramux_spans",
            "Spans of traces, by what became of them: exported, failed or dropped, because too "
            "many waited.",
            ("outcome",), registry=registry,
        )  # fmt: skip
        self.room = RoomMetrics(registry)
        self.lost_readers = Counter(
            "loramux_streams_unread", "Streams that ended because they were not read.",
            registry=registry,
        )  # fmt: skip
        self.engine_up = Gauge(
            "loramux_engine_up", "1 while the engine answers.", registry=registry
        )
        self.engine_starts = Counter(
            "loramux_engine_starts", "Times that the engine was started.", registry=registry
        )
        self._info = Gauge(
            "loramux_info", "The server and its base model.",
            ("version", "base_model", "architecture", "dtype", "device"), registry=registry,
        )  # fmt: skip
        self.labels = AdapterLabels(MAX_ADAPTER_LABELS, self._end_series)
        self._per_adapter = (
            self.prompt_tokens, self.generated_tokens, self.first_token, self.inter_token,
            self.duration,
        )  # fmt: skip
        self._series: dict[str, AdapterSeries] = {}
        self._engine = EngineMetrics(registry)
        self.totals = Totals()
        """The same over all adapters."""

    def describe(self, model: ModelInfo) -> None:
        """Show what is served."""
        self._info.labels(
            __version__, model.name, model.architecture, model.dtype, model.device
        ).set(1)
        self._engine.blocks_total.set(model.num_blocks)

    def of(self, adapter: str) -> "AdapterSeries":
        """Return what to count a request for `adapter` in, empty for the base, at this moment."""
        label = self.labels.label(adapter)
        series = self._series.get(label)
        if series is None:
            series = self._series[label] = AdapterSeries(self, label)
        return series

    def report(self, report: Report) -> None:
        """Take in what one step of the engine had to tell."""
        self._engine.report(report)
        self.totals.report(report)

    def engine_ready(self, is_ready: bool) -> None:
        """Note that the engine began to answer, or that it died."""
        self.engine_up.set(is_ready)
        if is_ready:
            self.engine_starts.inc()
        else:
            self._engine.ended()
            self.totals.engine = NOTHING

    def _end_series(self, name: str) -> None:
        self._series.pop(name, None)
        for metric in (*self._per_adapter, self.requests):
            metric.remove_by_labels({"adapter": name})


class AdapterSeries:
    """The metrics of one label value, at hand: to find them takes longer than to count."""

    def __init__(self, metrics: Metrics, label: str) -> None:
        self.prompt_tokens = metrics.prompt_tokens.labels(label)
        self.generated_tokens = metrics.generated_tokens.labels(label)
        self.first_token = metrics.first_token.labels(label)
        self.inter_token = metrics.inter_token.labels(label)
        self.duration = metrics.duration.labels(label)


class RoomMetrics:
    """What waits for the engine, and what was refused because too much did."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.shed = Counter(
            "loramux_requests_shed",
            "Requests refused because of overload, by what there was too much of: requests, "
            "tokens, bytes, memory, time, lag, or a share of the queue; late: those that waited "
            "until they could not be finished any more.",
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
            "loramux_loop_lag_seconds", "How late the frontend is at present.", registry=registry
        )


class EngineMetrics:
    """What the engine reports after each step."""

    def __init__(self, registry: CollectorRegistry) -> None:
        tier = ("tier",)
        self.running = Gauge(
            "loramux_requests_running", "Requests in the batch.", registry=registry
        )
        self.waiting = Gauge(
            "loramux_requests_waiting", "Requests in the queue.", registry=registry
        )
        self.paused = Gauge(
            "loramux_requests_paused", "Requests whose readers are behind.", registry=registry
        )
        self.batch_size = Histogram(
            "loramux_batch_requests", "Requests in one step.", buckets=_SIZES, registry=registry
        )
        self.batch_adapters = Histogram(
            "loramux_batch_adapters", "Distinct adapters in one step.",
            buckets=(0, *_SIZES), registry=registry,
        )  # fmt: skip
        self.batch_tokens = Histogram(
            "loramux_batch_tokens", "Tokens in one step.", buckets=_TOKENS, registry=registry
        )
        self.step = Histogram(
            "loramux_step_seconds", "Time of one step.", buckets=_STEP, registry=registry
        )
        self.blocks_used = Gauge(
            "loramux_kv_blocks_used", "KV blocks that requests hold.", registry=registry
        )
        self.blocks_total = Gauge("loramux_kv_blocks", "KV blocks.", registry=registry)
        self.prefix_tokens = Counter(
            "loramux_prefix_cache_tokens", "Tokens looked up in the prefix cache.",
            registry=registry,
        )  # fmt: skip
        self.prefix_hits = Counter(
            "loramux_prefix_cache_hit_tokens", "Those of them that were there.",
            registry=registry,
        )  # fmt: skip
        self.preemptions = Counter(
            "loramux_preemptions", "Requests that had to start over for want of KV blocks.",
            registry=registry,
        )  # fmt: skip
        self.resident = Gauge(
            "loramux_adapters_resident", "Adapters that a tier holds.", tier, registry=registry
        )
        self.resident_bytes = Gauge(
            "loramux_adapter_bytes",
            "Bytes of adapters that a tier holds, on the device in each process.",
            tier,
            registry=registry,
        )
        self.hits = Counter(
            "loramux_adapter_cache_hits", "Requests that found their adapter in a tier.",
            tier, registry=registry,
        )  # fmt: skip
        self.misses = Counter(
            "loramux_adapter_cache_misses", "Requests that did not find their adapter in a tier.",
            tier, registry=registry,
        )  # fmt: skip
        self.evictions = Counter(
            "loramux_adapter_evictions", "Adapters that a tier let go.", tier, registry=registry
        )
        self.reloads = Counter(
            "loramux_adapter_reloads",
            "Loads of adapters that the tier had let go within the last minute.",
            tier, registry=registry,
        )  # fmt: skip
        self.load = Histogram(
            "loramux_adapter_load_seconds", "Time to bring an adapter to a tier.",
            tier, buckets=_LATENCY, registry=registry,
        )  # fmt: skip
        self.compile = Histogram(
            "loramux_form_compile_seconds", "Time to compile the form of a structured output.",
            buckets=_STEP, registry=registry,
        )  # fmt: skip
        self._device = TierSeries(self, "device")
        self._host = TierSeries(self, "host")
        self._last = NOTHING

    def ended(self) -> None:
        """Note that the engine holds nothing any more and that the next one counts from zero."""
        self._last = NOTHING
        self.report(Report(stats=NOTHING))

    def report(self, report: Report) -> None:
        """Take in one report."""
        stats, last = report.stats, self._last
        self.running.set(stats.running)
        self.waiting.set(stats.waiting)
        self.paused.set(stats.paused)
        self.blocks_used.set(stats.used_blocks)
        self.preemptions.inc(stats.preemptions - last.preemptions)
        self.prefix_tokens.inc(stats.prompt_tokens - last.prompt_tokens)
        self.prefix_hits.inc(stats.shared_tokens - last.shared_tokens)
        self._device.report(stats.device, last.device)
        self._host.report(stats.host, last.host)
        self._last = stats
        for seconds in report.compiled:
            self.compile.observe(seconds)
        for load in report.loads:
            self.load.labels(load.tier).observe(load.seconds)
        if report.batch:
            self.batch_size.observe(report.batch.requests)
            self.batch_adapters.observe(report.batch.adapters)
            self.batch_tokens.observe(report.batch.tokens)
            self.step.observe(report.batch.seconds)


class TierSeries:
    """The metrics of one adapter tier, at hand as those of an adapter are."""

    def __init__(self, metrics: EngineMetrics, tier: str) -> None:
        self._resident = metrics.resident.labels(tier)
        self._resident_bytes = metrics.resident_bytes.labels(tier)
        self._hits = metrics.hits.labels(tier)
        self._misses = metrics.misses.labels(tier)
        self._evictions = metrics.evictions.labels(tier)
        self._reloads = metrics.reloads.labels(tier)

    def report(self, now: CacheStats, last: CacheStats) -> None:
        """Take in what the tier holds now, and what was counted since `last`."""
        self._resident.set(now.resident)
        self._resident_bytes.set(now.used_bytes)
        self._hits.inc(now.hits - last.hits)
        self._misses.inc(now.misses - last.misses)
        self._evictions.inc(now.evictions - last.evictions)
        self._reloads.inc(now.reloads - last.reloads)
