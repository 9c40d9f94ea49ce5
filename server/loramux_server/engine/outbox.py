"""The report after a step: everything that happened since the last one."""

from dataclasses import dataclass, field

from loramux_server.engine.hidden_results import HiddenResults
from loramux_server.engine.request import Request
from loramux_server.engine.residents import Landed, Residents
from loramux_server.engine.scheduler import Scheduler
from loramux_server.engine.structured_output import StructuredOutput
from loramux_server.lora.adapter_cache import Tier
from loramux_server.wire.messages import BatchSize, Failure, Report, Scores, Started, Stats, Token


@dataclass(frozen=True, slots=True)
class StepResults:
    """The results of a step."""

    tokens: list[Token] = field(default_factory=list)
    scores: list[Scores] = field(default_factory=list)
    size: BatchSize | None = None
    """None if nothing has run."""


class Outbox:
    """Keeps failures until they are reported, and collects statistics from their owners."""

    def __init__(
        self,
        scheduler: Scheduler,
        residents: Residents,
        hidden_results: HiddenResults,
        structured_output: StructuredOutput,
    ) -> None:
        """Begin with nothing to report; the arguments provide statistics and results."""
        self._scheduler = scheduler
        self._residents = residents
        self._hidden_results = hidden_results
        self._structured_output = structured_output
        self._failures: list[Failure] = []

    def fail(self, request: Request, reason: str, message: str, field: str) -> None:
        """Record why a request has ended without a result; see `Failure`."""
        self._failures.append(Failure(request.request_id, reason, message, field))

    def publish(self, landed: Landed, started: list[Started], results: StepResults) -> Report:
        """Return a report of everything since the last one.

        Args:
            landed: Loads that ended.
            started: Requests that left the queue.
            results: Results of a step that has ended.
        """
        failures, self._failures = self._failures, []
        return Report(
            tiers=self._residents.take_moved(),  # before the statistics: it drops adapters
            stats=self._stats(),
            tokens=results.tokens,
            prompts=self._hidden_results.pop_prompts(),
            scores=results.scores,
            failures=failures,
            started=started,
            loads=landed.loads,
            loading=self._residents.take_started(),
            failed_loads={load.source.digest: load.why for load in landed.failed},
            seals=self._residents.take_seals(),
            batch=results.size,
            compiled=self._structured_output.take_compiled(),
        )

    def _stats(self) -> Stats:
        return Stats(
            running=len(self._scheduler.running),
            waiting=len(self._scheduler.waiting),
            paused=len(self._scheduler.paused),
            used_blocks=self._scheduler.num_used_blocks,
            used_states=self._scheduler.num_used_states,
            preemptions=self._scheduler.num_preemptions,
            prompt_tokens=self._scheduler.num_prompt_tokens,
            shared_tokens=self._scheduler.num_shared_tokens,
            device=self._residents.stats(Tier.DEVICE),
            host=self._residents.stats(Tier.HOST),
        )
