"""The engine's metrics: steps, KV blocks and adapters."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from loramux_server.metrics.totals import NOTHING
from loramux_server.wire.messages import CacheStats, Report
from loramux_server.wire.model_info import ModelInfo

LATENCY = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
STEP = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_TOKENS = (1, 4, 16, 64, 128, 256, 512, 1024, 2048, 4096)


class EngineMetrics:
    """Metrics that the engine's report after each step updates."""

    def __init__(self, registry: CollectorRegistry) -> None:
        tier = ("tier",)
        self.running = Gauge(
            "loramux_requests_running", "Requests in the running batch.", registry=registry
        )
        self.waiting = Gauge(
            "loramux_requests_waiting", "Requests waiting in the queue.", registry=registry
        )
        self.paused = Gauge(
            "loramux_requests_paused",
            "Streams paused because their client reads too slowly.",
            registry=registry,
        )
        self.batch_size = Histogram(
            "loramux_batch_requests", "Requests per engine step.", buckets=_SIZES, registry=registry
        )
        self.batch_adapters = Histogram(
            "loramux_batch_adapters", "Distinct adapters per engine step.",
            buckets=(0, *_SIZES), registry=registry,
        )  # fmt: skip
        self.batch_tokens = Histogram(
            "loramux_batch_tokens", "Tokens per engine step.", buckets=_TOKENS, registry=registry
        )
        self.step = Histogram(
            "loramux_step_seconds", "Duration of an engine step.", buckets=STEP, registry=registry
        )
        self.blocks_used = Gauge(
            "loramux_kv_blocks_used", "KV cache blocks held by requests.", registry=registry
        )
        self.blocks_total = Gauge(
            "loramux_kv_blocks", "KV cache blocks in total.", registry=registry
        )
        self.blocks_ratio = Gauge(
            "loramux_kv_cache_usage_ratio",
            "Fraction of the KV cache blocks held by requests, 0 to 1.",
            registry=registry,
        )  # fmt: skip
        self.states_used = Gauge(
            "loramux_recurrent_states_used",
            "States of recurrent layers held by requests.",
            registry=registry,
        )
        self.states_total = Gauge(
            "loramux_recurrent_states", "States of recurrent layers in total.", registry=registry
        )
        self.prefix_tokens = Counter(
            "loramux_prefix_cache_tokens", "Prompt tokens looked up in the prefix cache.",
            registry=registry,
        )  # fmt: skip
        self.prefix_hits = Counter(
            "loramux_prefix_cache_hit_tokens", "Prompt tokens found in the prefix cache.",
            registry=registry,
        )  # fmt: skip
        self.draft_tokens = Counter(
            "loramux_draft_tokens",
            "Draft tokens verified (speculative decoding).",
            registry=registry,
        )
        self.draft_accepted = Counter(
            "loramux_draft_accepted_tokens",
            "Draft tokens accepted (speculative decoding).",
            registry=registry,
        )
        self.preemptions = Counter(
            "loramux_preemptions", "Requests preempted and restarted for lack of KV cache blocks.",
            registry=registry,
        )  # fmt: skip
        self.resident = Gauge(
            "loramux_adapters_resident", "Adapters held by a tier.", tier, registry=registry
        )
        self.resident_bytes = Gauge(
            "loramux_adapter_bytes",
            "Bytes of adapters held by a tier; on the device, in each process.",
            tier,
            registry=registry,
        )
        self.memory_bytes = Gauge(
            "loramux_adapter_memory_bytes",
            "Capacity of a tier for adapters in bytes; on the device, in each "
            "process.",
            tier, registry=registry,
        )  # fmt: skip
        self.hits = Counter(
            "loramux_adapter_cache_hits", "Requests that found their adapter in a tier.",
            tier, registry=registry,
        )  # fmt: skip
        self.misses = Counter(
            "loramux_adapter_cache_misses", "Requests that did not find their adapter in a tier.",
            tier, registry=registry,
        )  # fmt: skip
        self.evictions = Counter(
            "loramux_adapter_evictions", "Adapters evicted from a tier.", tier, registry=registry
        )
        self.reloads = Counter(
            "loramux_adapter_reloads",
            "Loads of adapters that the tier had evicted within the last minute.",
            tier, registry=registry,
        )  # fmt: skip
        self.load = Histogram(
            "loramux_adapter_load_seconds", "Time to load an adapter into a tier.",
            tier, buckets=LATENCY, registry=registry,
        )  # fmt: skip
        self.compile = Histogram(
            "loramux_form_compile_seconds", "Time to compile the grammar of a structured output.",
            buckets=STEP, registry=registry,
        )  # fmt: skip
        self._device = TierSeries(self, "device")
        self._host = TierSeries(self, "host")
        self._last = NOTHING
        self._num_blocks = 0

    def describe(self, model: ModelInfo) -> None:
        """Set the capacities for requests and adapters."""
        self._num_blocks = model.num_blocks
        self.blocks_total.set(model.num_blocks)
        self.states_total.set(model.num_states)
        self.memory_bytes.labels("device").set(model.adapter_rows * model.row_bytes)
        self.memory_bytes.labels("host").set(model.sizes.host_adapter_memory)

    def ended(self) -> None:
        """Reset the state after the engine has ended; the next one counts from zero."""
        self._last = NOTHING
        self.report(Report(stats=NOTHING))

    def report(self, report: Report) -> None:
        """Update the metrics from one report."""
        stats, last = report.stats, self._last
        self.running.set(stats.running)
        self.waiting.set(stats.waiting)
        self.paused.set(stats.paused)
        self.blocks_used.set(stats.used_blocks)
        self.blocks_ratio.set(stats.used_blocks / self._num_blocks if self._num_blocks else 0.0)
        self.states_used.set(stats.used_states)
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
            self.draft_tokens.inc(report.batch.drafted)
            self.draft_accepted.inc(report.batch.accepted)


class TierSeries:
    """The metrics of one adapter tier, with their label looked up once; see `AdapterSeries`."""

    def __init__(self, metrics: EngineMetrics, tier: str) -> None:
        self._resident = metrics.resident.labels(tier)
        self._resident_bytes = metrics.resident_bytes.labels(tier)
        self._hits = metrics.hits.labels(tier)
        self._misses = metrics.misses.labels(tier)
        self._evictions = metrics.evictions.labels(tier)
        self._reloads = metrics.reloads.labels(tier)

    def report(self, now: CacheStats, last: CacheStats) -> None:
        """Set what the tier holds now, and add what was counted since `last`."""
        self._resident.set(now.resident)
        self._resident_bytes.set(now.used_bytes)
        self._hits.inc(now.hits - last.hits)
        self._misses.inc(now.misses - last.misses)
        self._evictions.inc(now.evictions - last.evictions)
        self._reloads.inc(now.reloads - last.reloads)
