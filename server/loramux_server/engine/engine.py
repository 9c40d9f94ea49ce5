"""The engine core: an inbox, a step, an outbox. Plain calls; whoever owns it brings the thread."""

import logging
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from typing import Protocol

import torch

from loramux_adapters import PackageError
from loramux_server.engine.batch import Batch, grouped
from loramux_server.engine.messages import (
    AdapterSource,
    BatchSize,
    Cancel,
    Drop,
    Failure,
    Pin,
    Report,
    Started,
    Stats,
    Submit,
    ToEngine,
    Token,
    Unpin,
)
from loramux_server.engine.pace import Pace
from loramux_server.engine.request import Request
from loramux_server.engine.residents import Clock, Landed, Residents
from loramux_server.engine.sampler import Sampled, sample
from loramux_server.engine.scheduler import Plan, Scheduler
from loramux_server.lora.adapter_cache import AdapterCache, Tier
from loramux_server.lora.packed import DamagedError, PackedAdapter
from loramux_server.lora.slab import Slab
from loramux_server.lora.weight_format import AS_SAVED, Resting

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
        pace: Pace,
        cache: AdapterCache,
        slab: Slab,
        runner: Runner,
        load_packed: Callable[[AdapterSource], PackedAdapter],
        executor: Executor,
        wake: Callable[[], None],
        block_size: int,
        eos_token_ids: list[int],
        context_length: int,
        max_waiting: int,
        resting: Resting = AS_SAVED,
        clock: Clock = time.perf_counter,
    ) -> None:
        """Put the parts together.

        Args:
            scheduler: Decides what runs.
            pace: Decides how much of a prompt runs beside decode.
            cache: Decides which adapters are resident.
            slab: Holds the resident adapters.
            runner: Runs the model.
            load_packed: Reads an adapter into host memory; called on `executor`.
            executor: Runs loads beside the steps.
            wake: Called from `executor` when a load is done, so that an idle owner steps again.
            block_size: Tokens in a KV block.
            eos_token_ids: The tokens with which the model ends a text.
            context_length: Tokens that a prompt and its completion may have; the blocks hold them.
            max_waiting: Most requests in the queue.
            resting: In which format an adapter rests in memory.
            clock: Seconds, monotonic.
        """
        self._scheduler = scheduler
        self._pace = pace
        self._cache = cache
        self._residents = Residents(
            cache=cache,
            slab=slab,
            load_packed=load_packed,
            executor=executor,
            wake=wake,
            clock=clock,
        )
        self._runner = runner
        self._block_size = block_size
        self._eos_token_ids = eos_token_ids
        self._context_length = context_length
        self._max_waiting = max_waiting
        self._resting = resting
        self._clock = clock
        self._requests: dict[int, Request] = {}
        self._failures: list[Failure] = []
        self._is_stuck = True

    @property
    def can_step(self) -> bool:
        """Whether a step may make progress now; False means wait for a message or a load."""
        return not self._is_stuck or self._residents.has_landed

    def receive(self, messages: Iterable[ToEngine]) -> None:
        """Take in what the frontend sent."""
        for message in messages:
            self._is_stuck = False
            if isinstance(message, Submit):
                self._submit(message)
            elif isinstance(message, Cancel):
                self._end(message.request_id)
            elif isinstance(message, Drop):
                self._residents.drop(message.digest)
            elif isinstance(message, Pin):
                self._cache.pin(message.adapter.at_rest(self._resting))
            elif isinstance(message, Unpin):
                self._cache.unpin(message.digest)

    def step(self) -> Report:
        """Run the next batch, if there is work, and return everything that happened."""
        landed = self._residents.land()
        for source, error in landed.failed:
            self._fail_waiting(source, error)
        plan = self._scheduler.plan(self._pace.max_prompt_tokens)
        now = self._clock()
        started = [Started(r.request_id, now - r.arrival) for r in plan.started]
        # Loads start before the batch runs, so that they go on beside it.
        self._residents.start_loads(plan.urgent)
        self._is_stuck = not (plan.chunks or landed.loads or landed.failed)
        tokens: list[Token] = []
        size = None
        if plan.chunks:
            tokens = self._run(plan)
            size = _size(plan, self._clock() - now)
            self._pace.learn(plan.num_prompt_tokens, plan.num_decode_tokens, size.seconds)
        return self._report(started, tokens, landed, size)

    def check(self) -> None:
        """Assert that nothing leaked: blocks, rows, bytes, waits and leases."""
        self._scheduler.check()
        self._residents.check()

    def _submit(self, message: Submit) -> None:
        request = Request(
            message.request_id,
            message.prompt,
            message.adapter and message.adapter.at_rest(self._resting),
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
        batch = Batch.build(grouped(plan.chunks), self._residents.where, self._block_size)
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

    def _fail_waiting(self, source: AdapterSource, error: BaseException) -> None:
        """Fail the requests that wait for an adapter that could not be loaded."""
        reason = "INTERNAL"
        if isinstance(error, DamagedError):
            reason = "ADAPTER_DAMAGED"
        elif isinstance(error, PackageError):
            reason = error.reason
        else:
            _log.error("loading %s failed", source.digest, exc_info=error)
        for request in list(self._scheduler.waiting):
            if request.digest == source.digest:
                self._fail(request, reason, f"the stored adapter cannot be loaded: {error}")

    def _report(
        self,
        started: list[Started],
        tokens: list[Token],
        landed: Landed,
        size: BatchSize | None,
    ) -> Report:
        failures, self._failures = self._failures, []
        return Report(
            stats=Stats(
                running=len(self._scheduler.running),
                waiting=len(self._scheduler.waiting),
                used_blocks=self._scheduler.num_used_blocks,
                preemptions=self._scheduler.num_preemptions,
                prompt_tokens=self._scheduler.num_prompt_tokens,
                shared_tokens=self._scheduler.num_shared_tokens,
                device=self._cache.stats(Tier.DEVICE),
                host=self._cache.stats(Tier.HOST),
            ),
            tokens=tokens,
            failures=failures,
            started=started,
            loads=landed.loads,
            tiers=self._residents.take_moved(),
            loading=self._residents.take_begun(),
            failed_loads={source.digest: str(error) for source, error in landed.failed},
            batch=size,
        )


def _size(plan: Plan, seconds: float) -> BatchSize:
    digests = {chunk.request.digest for chunk in plan.chunks} - {None}
    return BatchSize(len(plan.chunks), plan.num_tokens, len(digests), seconds)
