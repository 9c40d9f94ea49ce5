"""The engine core: an inbox, a step, an outbox. Plain calls; whoever owns it brings the thread."""

import logging
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from typing import Any, Protocol

import torch

from loramux_adapters import PackageError
from loramux_server.engine.adapter_source import AdapterSource
from loramux_server.engine.admission import Admission
from loramux_server.engine.batch import Batch, grouped
from loramux_server.engine.deadlines import Deadlines
from loramux_server.engine.exhaustion import is_out_of_memory
from loramux_server.engine.flight import Flight, Outcome
from loramux_server.engine.messages import (
    BatchSize,
    Cancel,
    Drop,
    Failure,
    Pause,
    Ping,
    Report,
    Resume,
    Scores,
    Started,
    Stats,
    Submit,
    ToEngine,
    Token,
)
from loramux_server.engine.pace import Pace
from loramux_server.engine.plan import Plan
from loramux_server.engine.readings import Readings
from loramux_server.engine.request import Request
from loramux_server.engine.residents import Clock, Landed, Loader, Residents
from loramux_server.engine.sampler import FAULTS, Sampled, sample
from loramux_server.engine.scheduler import Scheduler
from loramux_server.engine.shaping import Follower, Shaping
from loramux_server.engine.speculation import Speculation
from loramux_server.lora.adapter_cache import AdapterCache, Tier
from loramux_server.lora.packed import DamagedError
from loramux_server.lora.weight_format import AS_SAVED, Resting

_log = logging.getLogger(__name__)


class Runner(Protocol):
    """What the engine needs from a model."""

    def run(self, batch: Batch) -> torch.Tensor:
        """Return the logits of the rows that need them, float32, as [R, V]."""

    def read(self, batch: Batch) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return the same, and what comes of each of `batch.read`, on the host."""


class Starter(Protocol):
    """What starts a step without waiting for the one before it."""

    def start(self, batch: Batch, before: Any) -> Outcome:  # noqa: ANN401
        """Start a step; some of its tokens are what `before` gives, an earlier outcome of this."""


class Engine:
    """Owns requests, blocks, adapters and tensors; nothing else touches them."""

    def __init__(
        self,
        *,
        scheduler: Scheduler,
        admission: Admission,
        pace: Pace,
        speculation: Speculation,
        cache: AdapterCache,
        loader: Loader,
        runner: Runner,
        starter: Starter | None = None,
        executor: Executor,
        wake: Callable[[], None],
        block_size: int,
        eos_token_ids: list[int],
        vocab_size: int | None = None,
        resting: Resting = AS_SAVED,
        follower: Follower | None = None,
        clock: Clock = time.perf_counter,
    ) -> None:
        """Put the parts together.

        Args:
            scheduler: Decides what runs.
            admission: Decides what may wait to run.
            pace: Decides how much of a prompt runs beside decode.
            speculation: Finds drafts.
            cache: Decides which adapters are resident.
            loader: Brings adapters to memory; called on `executor`.
            runner: Runs the model.
            starter: Runs it while the engine goes on; None where there is nothing to be gained.
            executor: Runs loads beside the steps.
            wake: Called from `executor` when a load is done, so that an idle owner steps again.
            block_size: Tokens in a KV block.
            eos_token_ids: The tokens with which the model ends a text.
            vocab_size: Tokens of the base; None if that makes no difference.
            resting: In which format an adapter rests in memory.
            follower: Knows what may come next in texts that have a form; None where there are none.
            clock: Seconds, monotonic.
        """
        self._shaping = Shaping(follower, self._fail)
        self._speculation = speculation
        self._scheduler = scheduler
        self._pace = pace
        self._cache = cache
        self._residents = Residents(
            cache=cache, loader=loader, executor=executor, wake=wake, clock=clock
        )
        self._runner = runner
        self._starter = starter
        self._block_size = block_size
        self._eos_token_ids = eos_token_ids
        self._admission = admission
        self._vocab_size = vocab_size
        self._resting = resting
        self._clock = clock
        self._requests: dict[int, Request] = {}
        self._failures: list[Failure] = []
        self._readings = Readings(self._fail, self._end)
        self._failed_loads: dict[str, str] = {}
        """Digest -> why, in words for callers."""
        self._flight: Flight | None = None
        """The step that runs while the next one is planned."""
        self._landed_at = 0.0
        self._deadlines = Deadlines()
        self._is_stuck = True

    @property
    def can_step(self) -> bool:
        """Whether a step may make progress now; False means wait for a message or a load."""
        has_landed = self._residents.has_landed or self._shaping.has_found
        return not self._is_stuck or self._flight is not None or has_landed

    def receive(self, messages: Iterable[ToEngine]) -> None:
        """Take in what the frontend sent."""
        for message in messages:
            self._is_stuck = False
            if isinstance(message, Submit):
                self._submit(message)
            elif isinstance(message, Cancel):
                self._end(message.request_id)
            elif isinstance(message, Pause | Resume):
                self._pause_or_resume(message)
            elif not isinstance(message, Ping):
                self._residents.steer(message)
                if isinstance(message, Drop):
                    self._speculation.forget(message.digest)

    def step(self) -> Report:
        """Run the next batch, if there is work, and return everything that happened."""
        self._end_late()
        self._shaping.land()
        landed = self._residents.land()
        for source, error in landed.failed:
            self._fail_waiting(source, error)
        before, self._flight = self._flight, None
        plan = self._follow(before) if before else None
        if before and plan is None:
            self._is_stuck = False
            return self._report([], *self._land(before), landed)
        plan = plan or self._plan()
        now = self._clock()
        started = [
            Started(r.request_id, now - r.arrival, max(0, r.num_computed - r.num_virtual))
            for r in plan.started
        ]
        # Loads start before the batch runs, so that they go on beside it.
        self._residents.start_loads(plan.urgent)
        self._is_stuck = not (plan.chunks or landed.loads or landed.failed)
        tokens: list[Token] = []
        scores: list[Scores] = []
        size = None
        if plan.chunks and self._may_run_ahead(plan):
            self._flight = self._start(plan, before)
            if before:
                tokens, size = self._land(before)
        elif plan.chunks:
            tokens, scores, waited = self._run(plan)
            size = self._learn(plan, now + waited, tokens)
        return self._report(started, tokens, size, landed, scores)

    def check(self) -> None:
        """Assert that nothing leaked: blocks, rows, bytes, waits, leases, drafts and forms."""
        self._scheduler.check()
        self._speculation.check(self._requests.values())
        self._residents.check()
        self._shaping.check()

    def _submit(self, message: Submit) -> None:
        request = Request.of(
            message, self._resting, self._clock(), self._eos_token_ids, self._vocab_size
        )
        if refusal := self._admission.refusal(request):
            self._fail(request, *refusal)
            return
        self._requests[request.request_id] = request
        self._deadlines.note(request)
        self._scheduler.add(request)
        self._shaping.begin(request)

    def _end_late(self) -> None:
        for request in self._deadlines.late(self._requests.values(), self._clock()):
            seconds = request.deadline - request.arrival
            message = f"the request did not finish within {seconds:.3g} s"
            self._fail(request, "DEADLINE_EXCEEDED", message)

    def _end(self, request_id: int) -> None:
        """Forget a request wherever it is; unknown ones have ended already."""
        request = self._requests.pop(request_id, None)
        if request:
            self._scheduler.remove(request)
            self._shaping.end(request)
            self._speculation.end(request)

    def _pause_or_resume(self, message: Pause | Resume) -> None:
        request = self._requests.get(message.request_id)
        if request and isinstance(message, Pause):
            self._scheduler.pause(request)
        elif request:
            self._scheduler.resume(request)

    def _fail(self, request: Request, reason: str, message: str, field: str = "") -> None:
        self._end(request.request_id)
        self._failures.append(Failure(request.request_id, reason, message, field))

    def _plan(self) -> Plan:
        plan = self._scheduler.plan(self._pace.max_prompt_tokens)
        num_left = self._scheduler.num_left(plan)
        most = self._pace.max_draft_tokens(plan.num_prompt_tokens)
        drafts = self._speculation.drafts(
            plan.chunks,
            num_left if most is None else min(most, num_left),
            self._pace.part_of_draft(plan.num_prompt_tokens),
        )
        return self._scheduler.with_drafts(plan, drafts)

    def _follow(self, before: Flight) -> Plan | None:
        """Return the step after `before`; None if that has to end first."""
        running = [c for c in before.plan.chunks if c.request.request_id in self._requests]
        if self._speculation.expects(running):
            return None
        return self._scheduler.follow(before.plan)

    def _may_run_ahead(self, plan: Plan) -> bool:
        """Return whether the device alone can tell what the tokens of `plan` are."""
        return self._starter is not None and all(chunk.is_plain for chunk in plan.chunks)

    def _start(self, plan: Plan, before: Flight | None) -> Flight:
        assert self._starter is not None
        begin = self._clock()
        batch = self._lay_out(plan, before.batch if before else None, draws=True)
        outcome = self._starter.start(batch, before.outcome if before else None)
        return Flight(plan, batch, outcome, begin)

    def _land(self, flight: Flight) -> tuple[list[Token], BatchSize]:
        """Wait for a step that was started, and take in what it gave."""
        chosen = [[one] for one in flight.outcome.wait()]
        tokens = self._commit(flight.plan, flight.batch, chosen)
        return tokens, self._learn(flight.plan, max(flight.begin, self._landed_at), tokens)

    def _run(self, plan: Plan) -> tuple[list[Token], list[Scores], float]:
        """Return what a step gives, and how many of its seconds nothing ran."""
        batch = self._lay_out(plan, None, draws=False)
        self._shaping.foresee(batch.drafts)
        read: list[torch.Tensor] = []
        if batch.read:
            logits_RV, read = self._runner.read(batch)
        else:
            logits_RV = self._runner.run(batch)
        begin = self._clock()
        self._shaping.wait(batch.requests)
        waited = self._clock() - begin
        sampled = sample(logits_RV, batch.requests, self._vocab_size, batch.drafts)
        # Before tokens: a request of whose prompt nothing can be told makes none.
        self._readings.take_prompts(batch, read)
        return self._commit(plan, batch, sampled), self._readings.take_scores(batch, read), waited

    def _lay_out(self, plan: Plan, before: Batch | None, *, draws: bool) -> Batch:
        chunks = grouped(plan.chunks)
        return Batch.build(chunks, self._residents.where, self._block_size, before, draws=draws)

    def _learn(self, plan: Plan, begin: float, tokens: Sequence[Token]) -> BatchSize:
        """Return the size of a step that has just ended, and let the pace know what it took."""
        self._landed_at = self._clock()
        seconds, drafted = self._landed_at - begin, plan.num_draft_tokens
        self._pace.learn(plan.num_prompt_tokens, plan.num_decode_tokens, seconds, drafted)
        # Each request has one token, and one more for each that was drafted and held.
        accepted = len(tokens) - len({token.request_id for token in tokens}) if drafted else 0
        digests = {chunk.digest for chunk in plan.chunks} - {None}
        return BatchSize(
            len(plan.chunks), plan.num_tokens, len(digests), seconds, drafted, accepted
        )

    def _commit(self, plan: Plan, batch: Batch, sampled: list[list[Sampled]]) -> list[Token]:
        by_request = dict(zip(batch.requests, sampled, strict=True))
        rows = (by_request[chunk.request] for chunk in plan.chunks if chunk.samples)
        chosen = [[row.token for row in rows_of_one if not row.is_put_off] for rows_of_one in rows]
        left = {request: iter(choices) for request, choices in by_request.items()}
        tokens: list[Token] = []
        shaped: dict[Request, list[int]] = {}
        for request, token, finish in self._scheduler.commit(plan, chosen):
            choice = next(left[request])
            if choice.fault:
                self._fail(request, choice.fault, FAULTS[choice.fault])
                shaped.pop(request, None)
                continue
            tokens.append(Token(request.request_id, token, finish, choice.logprobs))
            if finish:
                del self._requests[request.request_id]
                self._shaping.end(request)
                self._speculation.end(request)
                shaped.pop(request, None)
            elif request.sampling.form:
                shaped.setdefault(request, []).append(token)
        self._shaping.advance(shaped)
        return tokens

    def _fail_waiting(self, source: AdapterSource, error: BaseException) -> None:
        """Fail the requests that wait for an adapter that could not be loaded."""
        if isinstance(error, DamagedError | PackageError):
            reason, why = error.reason, str(error)
        elif is_out_of_memory(error):
            reason, why = "ENGINE_OUT_OF_MEMORY", "no memory is left for it at present"
        else:
            incident = secrets.token_hex(8)
            reason, why = "INTERNAL", f"internal error, incident {incident}"
            _log.error("incident %s: loading %s failed", incident, source.digest, exc_info=error)
        self._failed_loads[source.digest] = why
        for request in list(self._scheduler.waiting):
            if request.digest == source.digest:
                self._fail(request, reason, f"the stored adapter cannot be loaded: {why}")

    def _report(
        self,
        started: list[Started],
        tokens: list[Token],
        size: BatchSize | None,
        landed: Landed,
        scores: Sequence[Scores] = (),
    ) -> Report:
        failures, self._failures = self._failures, []
        failed_loads, self._failed_loads = self._failed_loads, {}
        return Report(
            tiers=self._residents.take_moved(),  # before the figures: adapters go with it
            stats=Stats(
                running=len(self._scheduler.running),
                waiting=len(self._scheduler.waiting),
                paused=len(self._scheduler.paused),
                used_blocks=self._scheduler.num_used_blocks,
                preemptions=self._scheduler.num_preemptions,
                prompt_tokens=self._scheduler.num_prompt_tokens,
                shared_tokens=self._scheduler.num_shared_tokens,
                device=self._residents.stats(Tier.DEVICE),
                host=self._residents.stats(Tier.HOST),
            ),
            tokens=tokens,
            prompts=self._readings.pop_prompts(),
            scores=list(scores),
            failures=failures,
            started=started,
            loads=landed.loads,
            loading=self._residents.take_begun(),
            failed_loads=failed_loads,
            seals=self._residents.take_seals(),
            batch=size,
            compiled=self._shaping.take_compiled(),
        )
