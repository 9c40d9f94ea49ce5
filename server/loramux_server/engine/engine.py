"""The engine core: an inbox, a step, an outbox. Plain calls; whoever owns it brings the thread."""

import logging
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, Future
from typing import Any, Protocol, cast

import torch

from loramux_adapters import PackageError
from loramux_server.engine.batch import Batch, Residence, grouped
from loramux_server.engine.messages import (
    AdapterSource,
    BatchSize,
    Cancel,
    Drop,
    Failure,
    Load,
    Report,
    Started,
    Stats,
    Submit,
    ToEngine,
    Token,
)
from loramux_server.engine.request import Request
from loramux_server.engine.sampler import Sampled, sample
from loramux_server.engine.scheduler import Plan, Scheduler
from loramux_server.lora.adapter_cache import AdapterCache, LoadOrder, Tier
from loramux_server.lora.packed import DamagedError, PackedAdapter
from loramux_server.lora.slab import Slab

Clock = Callable[[], float]

_log = logging.getLogger(__name__)

_FAULTS = {
    "ADAPTER_NOT_FINITE": "the logits are not finite: the weights overflow on this prompt",
    "INTERNAL": "no token could be chosen with these sampling parameters",
}
"""What is said of a row without a token."""


class Runner(Protocol):
    """What the engine needs from a model."""

    def run(self, batch: Batch) -> torch.Tensor:
        """Return the logits of the rows that need them, float32, as [R, V]."""


class Engine:
    """Owns requests, blocks, adapters and tensors; nothing else touches them."""

    def __init__(
        self,
        *,
        scheduler: Scheduler,
        cache: AdapterCache,
        slab: Slab,
        runner: Runner,
        load_packed: Callable[[AdapterSource], PackedAdapter],
        executor: Executor,
        wake: Callable[[], None],
        block_size: int,
        eos_token_ids: list[int],
        device: torch.device,
        context_length: int,
        max_waiting: int,
        clock: Clock = time.perf_counter,
    ) -> None:
        """Put the parts together.

        Args:
            scheduler: Decides what runs.
            cache: Decides which adapters are resident.
            slab: Holds the resident adapters.
            runner: Runs the model.
            load_packed: Reads an adapter into host memory; called on `executor`.
            executor: Runs loads beside the steps.
            wake: Called from `executor` when a load is done, so that an idle owner steps again.
            block_size: Tokens in a KV block.
            eos_token_ids: The tokens with which the model ends a text.
            device: Where the model runs.
            context_length: Tokens that a prompt and its completion may have; the blocks hold them.
            max_waiting: Most requests in the queue.
            clock: Seconds, monotonic.
        """
        self._scheduler = scheduler
        self._cache = cache
        self._slab = slab
        self._runner = runner
        self._load_packed = load_packed
        self._executor = executor
        self._wake = wake
        self._block_size = block_size
        self._eos_token_ids = eos_token_ids
        self._device = device
        self._context_length = context_length
        self._max_waiting = max_waiting
        self._clock = clock
        self._requests: dict[int, Request] = {}
        self._packed: dict[str, PackedAdapter] = {}
        self._residence: dict[str, Residence] = {}
        self._loading: dict[LoadOrder, tuple[Future[Any], float]] = {}
        self._failures: list[Failure] = []
        self._loads: list[Load] = []
        self._is_stuck = True

    @property
    def can_step(self) -> bool:
        """Whether a step may make progress now; False means wait for a message or a load."""
        return not self._is_stuck or any(future.done() for future, _ in self._loading.values())

    def receive(self, messages: Iterable[ToEngine]) -> None:
        """Take in what the frontend sent."""
        for message in messages:
            self._is_stuck = False
            if isinstance(message, Submit):
                self._submit(message)
            elif isinstance(message, Cancel):
                self._end(message.request_id)
            elif isinstance(message, Drop):
                self._cache.drop(message.digest)

    def step(self) -> Report:
        """Run the next batch, if there is work, and return everything that happened."""
        num_done = self._finish_loads()
        plan = self._scheduler.plan()
        now = self._clock()
        started = [Started(r.request_id, now - r.arrival) for r in plan.started]
        # Loads start before the batch runs, so that they go on beside it.
        self._start_loads()
        self._is_stuck = not (plan.chunks or num_done)
        tokens: list[Token] = []
        size = None
        if plan.chunks:
            tokens = self._run(plan)
            size = _size(plan, self._clock() - now)
        return self._report(started, tokens, size)

    def check(self) -> None:
        """Assert that nothing leaked: blocks, rows, bytes, waits and leases."""
        self._scheduler.check()
        self._cache.check()

    def _submit(self, message: Submit) -> None:
        request = Request(
            message.request_id,
            message.prompt,
            message.adapter,
            message.sampling,
            arrival=self._clock(),
        )
        # The frontend checks the prompt too; here it would never end, or hold up the whole queue.
        if not request.prompt:
            self._fail(request, "INVALID_FIELD", "the prompt has no tokens")
        elif len(request.prompt) >= self._context_length:
            self._fail(
                request,
                "CONTEXT_LENGTH_EXCEEDED",
                f"the prompt has {len(request.prompt)} tokens; the context of "
                f"{self._context_length} leaves no room for a completion",
            )
        elif self._scheduler.num_queued >= self._max_waiting:
            self._fail(request, "QUEUE_FULL", f"{self._max_waiting} requests are waiting already")
        elif request.adapter and not self._cache.fits(request.adapter):
            self._fail(
                request,
                "ADAPTER_TOO_LARGE",
                f"an adapter of rank {request.adapter.rank} does not fit the adapter memory",
            )
        else:
            self._requests[request.request_id] = request
            self._scheduler.add(request)

    def _end(self, request_id: int) -> None:
        """Forget a request wherever it is; unknown ones have ended already."""
        request = self._requests.pop(request_id, None)
        if request:
            self._scheduler.remove(request)

    def _fail(self, request: Request, reason: str, message: str) -> None:
        self._end(request.request_id)
        self._failures.append(Failure(request.request_id, reason, message))

    def _run(self, plan: Plan) -> list[Token]:
        batch = Batch.build(grouped(plan.chunks), self._where, self._block_size, self._device)
        logits_RV = self._runner.run(batch)
        sampled = sample(logits_RV, batch.requests, self._eos_token_ids)
        by_request = dict(zip(batch.requests, sampled, strict=True))
        chosen = [by_request[chunk.request] for chunk in plan.chunks if chunk.samples]
        return self._commit(plan, chosen)

    def _commit(self, plan: Plan, chosen: list[Sampled]) -> list[Token]:
        results = self._scheduler.commit(plan, [choice.token for choice in chosen])
        tokens: list[Token] = []
        for (request, token, finish), choice in zip(results, chosen, strict=True):
            if choice.fault:
                self._fail(request, choice.fault, _FAULTS[choice.fault])
                continue
            tokens.append(Token(request.request_id, token, finish, choice.logprobs))
            if finish:
                del self._requests[request.request_id]
        return tokens

    def _where(self, digest: str) -> Residence:
        residence = self._residence[digest]
        assert residence.row == self._cache.row_of(digest)
        return residence

    def _start_loads(self) -> None:
        for order in self._cache.plan_loads(self._scheduler.urgent):
            future: Future[Any]
            if order.tier is Tier.HOST:
                future = self._executor.submit(self._load_packed, order.source)
            else:
                packed = self._packed[order.source.digest]
                future = self._executor.submit(self._slab.write, order.row, packed)
            self._loading[order] = (future, self._clock())
            future.add_done_callback(lambda _: self._wake())
        for digest in self._cache.take_freed():
            self._packed.pop(digest, None)

    def _finish_loads(self) -> int:
        """Take in the loads that are done and return their number."""
        done = [order for order, (future, _) in self._loading.items() if future.done()]
        for order in done:
            future, begin = self._loading.pop(order)
            if error := future.exception():
                self._load_failed(order, error)
                continue
            digest = order.source.digest
            if order.tier is Tier.HOST:
                self._packed[digest] = cast(PackedAdapter, future.result())
            else:
                self._residence[digest] = Residence(
                    order.row, order.source.rank, self._packed[digest].rank_GP
                )
            self._cache.loaded(order)
            self._loads.append(Load(order.tier, self._clock() - begin))
        return len(done)

    def _load_failed(self, order: LoadOrder, error: BaseException) -> None:
        reason = "INTERNAL"
        if isinstance(error, DamagedError):
            reason = "ADAPTER_DAMAGED"
        elif isinstance(error, PackageError):
            reason = error.reason
        else:
            _log.error("loading %s failed", order.source.digest, exc_info=error)
        for request in list(self._scheduler.waiting):
            if request.digest == order.source.digest:
                self._fail(request, reason, f"the stored adapter cannot be loaded: {error}")
        self._cache.failed(order)

    def _report(
        self, started: list[Started], tokens: list[Token], size: BatchSize | None
    ) -> Report:
        failures, self._failures = self._failures, []
        loads, self._loads = self._loads, []
        moved = self._cache.take_moved()
        for digest, tier in moved.items():
            if tier is not Tier.DEVICE:
                self._residence.pop(digest, None)
        return Report(
            stats=Stats(
                running=len(self._scheduler.running),
                waiting=len(self._scheduler.waiting),
                used_blocks=self._scheduler.num_used_blocks,
                preemptions=self._scheduler.num_preemptions,
                device=self._cache.stats(Tier.DEVICE),
                host=self._cache.stats(Tier.HOST),
            ),
            tokens=tokens,
            failures=failures,
            started=started,
            loads=loads,
            tiers={digest: str(tier) for digest, tier in moved.items()},
            batch=size,
        )


def _size(plan: Plan, seconds: float) -> BatchSize:
    digests = {chunk.request.digest for chunk in plan.chunks} - {None}
    return BatchSize(len(plan.chunks), plan.num_tokens, len(digests), seconds)
