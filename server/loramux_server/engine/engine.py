"""The engine core: an inbox, a step, an outbox. Plain calls; its owner provides the thread."""

import time
from collections.abc import Iterable, Sequence

from loramux_server.engine.admission import Admission
from loramux_server.engine.base import Base
from loramux_server.engine.batch import Batch, grouped
from loramux_server.engine.deadlines import Deadlines
from loramux_server.engine.execution import Execution, Runner, Starter
from loramux_server.engine.flight import Flight, Ran
from loramux_server.engine.hidden_results import HiddenResults
from loramux_server.engine.image_encoder import ImageEncoder, encoding_fault
from loramux_server.engine.outbox import Outbox, StepResults
from loramux_server.engine.pace import Pace
from loramux_server.engine.plan import Plan
from loramux_server.engine.request import Request
from loramux_server.engine.residents import Clock, Landed, Residents
from loramux_server.engine.sampler import FAULTS
from loramux_server.engine.scheduler import Scheduler
from loramux_server.engine.speculation import Speculation
from loramux_server.engine.structured_output import MaskProvider, StructuredOutput
from loramux_server.wire.messages import (
    BatchSize,
    Cancel,
    Drop,
    Pause,
    Ping,
    Report,
    Resume,
    Started,
    Submit,
    ToEngine,
    Token,
)


class Engine:
    """Owns requests, blocks, adapters and tensors; nothing else touches them."""

    def __init__(
        self,
        *,
        scheduler: Scheduler,
        admission: Admission,
        pace: Pace,
        speculation: Speculation,
        residents: Residents,
        image_encoder: ImageEncoder,
        runner: Runner,
        starter: Starter | None = None,
        base: Base,
        shares_cores: bool = False,
        masks: MaskProvider | None = None,
        clock: Clock = time.perf_counter,
    ) -> None:
        """Put the parts together.

        Args:
            scheduler: Decides what runs.
            admission: Decides what may be queued.
            pace: Decides how many prompt tokens run beside decode.
            speculation: Finds drafts.
            residents: Loads adapters into memory, and drops them.
            image_encoder: Encodes images.
            runner: Runs the model.
            starter: Runs it asynchronously; None where there is nothing to be gained.
            base: Properties of the base model that requests depend on.
            shares_cores: Whether steps compete with loads for cores.
            masks: Knows the allowed tokens in structured output; None if that is not served.
            clock: Seconds, monotonic.
        """
        self._scheduler = scheduler
        self._admission = admission
        self._pace = pace
        self._speculation = speculation
        self._base = base
        self._clock = clock
        self._residents = residents
        self._image_encoder = image_encoder
        self._structured_output = StructuredOutput(masks, self._fail)
        self._execution = Execution(
            runner, starter, self._structured_output, base.vocab_size, clock
        )
        self._hidden_results = HiddenResults(self._fail, self._end)
        self._outbox = Outbox(scheduler, residents, self._hidden_results, self._structured_output)
        self._requests: dict[int, Request] = {}
        self._deadlines = Deadlines()
        self._ended_at = 0.0
        """When the results of the last step were processed."""
        self._shares_cores = shares_cores
        self._ran_seconds = 0.0
        """Seconds for which the last step kept the cores from loads; 0 if it did not."""
        self._is_stuck = True

    @property
    def can_step(self) -> bool:
        """Whether a step may make progress now; if not, wait for a message or a load."""
        parts = (
            self._residents.has_landed,
            self._structured_output.has_found,
            self._image_encoder.has_encoded,
        )
        return not self._is_stuck or self._execution.flight is not None or any(parts)

    def receive(self, messages: Iterable[ToEngine]) -> None:
        """Process messages from the frontend."""
        for message in messages:
            self._is_stuck = False
            if isinstance(message, Submit):
                self._submit(message)
            elif isinstance(message, Cancel):
                self._end(message.request_id)
            elif isinstance(message, Pause | Resume):
                self._pause_or_resume(message)
            elif not isinstance(message, Ping):
                self._residents.handle(message)
                if isinstance(message, Drop):
                    self._speculation.forget(message.digest)

    def step(self) -> Report:
        """Run the next batch, if there is work, and return everything that happened."""
        self._end_late()
        self._land_images()
        self._structured_output.land()
        self._residents.yield_cores(self._ran_seconds)
        self._ran_seconds = 0.0
        landed = self._land_loads()
        before = self._execution.flight
        plan = self._follow(before) if before else self._plan()
        if plan is None:  # the step in flight has to end first
            self._is_stuck = False
            return self._outbox.publish(landed, [], self._commit(self._execution.land()))
        now = self._clock()
        started = [
            Started(r.request_id, now - r.arrival, max(0, r.num_computed - r.num_virtual))
            for r in plan.started
        ]
        # Loads start before the batch runs, so that they run concurrently.
        self._residents.start_loads(plan.urgent)
        self._is_stuck = not (plan.chunks or landed.loads or landed.failed)
        if not plan.chunks:
            return self._outbox.publish(landed, started, StepResults())
        runs_ahead = self._execution.can_run_ahead(plan)
        batch = Batch.build(
            grouped(plan.chunks),
            self._residents.where,
            self._base.block_size,
            before.batch if before else None,
            draws=runs_ahead,
        )
        run_and_sample = self._execution.start if runs_ahead else self._execution.run
        ran = run_and_sample(plan, batch, now)
        if self._shares_cores:
            self._ran_seconds = self._clock() - now
        return self._outbox.publish(landed, started, self._commit(ran))

    def close(self) -> None:
        """Stop background work: nobody waits for it any more."""
        self._image_encoder.close()

    def check(self) -> None:
        """Assert that nothing leaked: blocks, rows, bytes, waits, leases, drafts, constraints."""
        self._scheduler.check()
        self._image_encoder.check(self._requests.values())
        self._speculation.check(self._requests.values())
        self._residents.check()
        self._structured_output.check()

    def _submit(self, message: Submit) -> None:
        request = Request.of(message, self._base, self._clock())
        if refusal := self._admission.refusal(request):
            self._fail(request, *refusal)
            return
        self._requests[request.request_id] = request
        self._deadlines.note(request)
        if message.ask.images:
            self._image_encoder.begin(request, message.ask.images)
        else:
            self._queue(request)

    def _queue(self, request: Request) -> None:
        self._scheduler.add(request)
        self._structured_output.begin(request)

    def _land_images(self) -> None:
        """Queue the requests whose images have been encoded."""
        encoded = self._image_encoder.land()
        for request in encoded.ready:
            self._queue(request)
        for request, error in encoded.failed:
            self._fail(request, *encoding_fault(error))

    def _end_late(self) -> None:
        for request in self._deadlines.late(self._requests.values(), self._clock()):
            seconds = request.deadline - request.arrival
            message = f"the request did not finish within {seconds:.3g} s"
            self._fail(request, "DEADLINE_EXCEEDED", message)

    def _land_loads(self) -> Landed:
        """Process finished loads, and fail the requests that wait for one that failed."""
        landed = self._residents.land()
        for load in landed.failed:
            message = f"the stored adapter cannot be loaded: {load.why}"
            for request in list(self._scheduler.waiting):
                if request.digest == load.source.digest:
                    self._fail(request, load.reason, message)
        return landed

    def _end(self, request_id: int) -> None:
        """Remove a request wherever it is; unknown ones have ended already."""
        request = self._requests.pop(request_id, None)
        if request:
            self._image_encoder.end(request)
            self._scheduler.remove(request)
            self._structured_output.end(request)
            self._speculation.end(request)

    def _pause_or_resume(self, message: Pause | Resume) -> None:
        request = self._requests.get(message.request_id)
        if request and isinstance(message, Pause):
            self._image_encoder.pause(request)
            self._scheduler.pause(request)
        elif request:
            self._image_encoder.resume(request)
            self._scheduler.resume(request)

    def _fail(self, request: Request, reason: str, message: str, field: str = "") -> None:
        self._end(request.request_id)
        self._outbox.fail(request, reason, message, field)

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
        """Plan the step after `before`, which is in flight; None if that has to end first."""
        running = [c for c in before.plan.chunks if c.request.request_id in self._requests]
        if self._speculation.expects(running):
            return None
        return self._scheduler.follow(before.plan)

    def _commit(self, ran: Ran | None) -> StepResults:
        """Process the results of a step, if one has ended, and return what to report."""
        if ran is None:
            return StepResults()
        # Before tokens: a request whose prompt log-probabilities are not finite gets none.
        self._hidden_results.take_prompts(ran.batch, ran.read)
        tokens = self._commit_tokens(ran)
        scores = self._hidden_results.take_scores(ran.batch, ran.read)
        return StepResults(tokens, scores, self._learn(ran, tokens))

    def _commit_tokens(self, ran: Ran) -> list[Token]:
        by_request = dict(zip(ran.batch.requests, ran.sampled, strict=True))
        rows = (by_request[chunk.request] for chunk in ran.plan.chunks if chunk.samples)
        chosen = [[row.token for row in rows_of_one if not row.is_deferred] for rows_of_one in rows]
        left = {request: iter(choices) for request, choices in by_request.items()}
        tokens: list[Token] = []
        constrained: dict[Request, list[int]] = {}
        for request, token, finish in self._scheduler.commit(ran.plan, chosen):
            choice = next(left[request])
            if choice.fault:
                self._fail(request, choice.fault, FAULTS[choice.fault])
                constrained.pop(request, None)
                continue
            tokens.append(Token(request.request_id, token, finish, choice.logprobs))
            if finish:
                del self._requests[request.request_id]
                self._structured_output.end(request)
                self._speculation.end(request)
                constrained.pop(request, None)
            elif request.sampling.form:
                constrained.setdefault(request, []).append(token)
        self._structured_output.advance(constrained)
        return tokens

    def _learn(self, ran: Ran, tokens: Sequence[Token]) -> BatchSize:
        """Return the size of a step that has just ended, and record its cost."""
        plan, begin = ran.plan, max(ran.begin, self._ended_at)
        self._ended_at = self._clock()
        seconds, drafted = self._ended_at - begin, plan.num_draft_tokens
        self._pace.learn(plan.num_prompt_tokens, plan.num_decode_tokens, seconds, drafted)
        # Each request gets one token, and one more for each draft token that was accepted.
        accepted = len(tokens) - len({token.request_id for token in tokens}) if drafted else 0
        digests = {chunk.digest for chunk in plan.chunks} - {None}
        return BatchSize(
            len(plan.chunks), plan.num_tokens, len(digests), seconds, drafted, accepted
        )
