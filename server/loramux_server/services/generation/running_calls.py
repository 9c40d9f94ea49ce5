"""Running calls: submission to the engine, the waiting room, deadlines and tracing."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from loramux_server.engine_link.client import EngineClient
from loramux_server.services.deadline import Deadline
from loramux_server.services.gen_ai import answered, request_attributes
from loramux_server.services.generation.beam_search import BeamSearch
from loramux_server.services.generation.beams import BeamOptions
from loramux_server.services.generation.call import GenerationCall
from loramux_server.services.generation.completions import Completions
from loramux_server.services.generation.output import Output
from loramux_server.services.request_spans import RequestSpans
from loramux_server.services.submission import Submission
from loramux_server.waiting_room.room import WaitingRoom
from loramux_server.wire.ask import Ask
from loramux_server.wire.messages import PromptLogprobs, Token


class RunningCalls:
    """Runs calls on the engine."""

    def __init__(
        self,
        *,
        engine: EngineClient,
        room: WaitingRoom,
        spans: RequestSpans,
        model_name: str,
        stream_interval: int,
    ) -> None:
        """Prepare.

        Args:
            engine: Runs the completions.
            room: Where completions wait.
            spans: Traces them.
            model_name: Name of the base model in traces.
            stream_interval: Tokens per delivery where a completion may be cut off.
        """
        self._engine = engine
        self._room = room
        self._spans = spans
        self._model_name = model_name
        self._stream_interval = stream_interval

    @contextmanager
    def completions(
        self, call: GenerationCall, deadline: Deadline, interval: int
    ) -> Iterator[Completions]:
        """Run the completions of `call` until the block ends."""
        at_once = self._stream_interval if call.is_cut_off else interval
        submission = Submission[Token | PromptLogprobs](self._engine, call.started, at_once)
        completions = Completions(call, submission)
        prepared, samplings = call.prepared, call.options.samplings
        self._enter(call, len(samplings), submission, deadline)
        running = submission.running(
            [
                Ask(
                    prepared.prompt,
                    call.adapters.source,
                    sampling,
                    call.tenant,
                    prediction=prepared.predicted,
                    images=prepared.images,
                    num_source=prepared.num_source,
                    cache_salt=call.cache_salt,
                )
                for sampling in samplings
            ],
            seconds_left=deadline.remaining,
            place=call.place,
        )
        followed = self._followed(call, completions.outputs, submission.ids)
        with completions.accounted(), running, followed, deadline.over(submission.mailbox):
            yield completions

    @contextmanager
    def search(
        self, call: GenerationCall, beams: BeamOptions, deadline: Deadline
    ) -> Iterator[BeamSearch]:
        """Submit the first step of a beam search, which the block continues."""
        search = BeamSearch(self._engine, call, beams, deadline)
        self._enter(call, beams.num_beams, search.first, deadline)
        running = search.first.running(
            search.asks, seconds_left=deadline.remaining, place=call.place
        )
        followed = self._followed(call, search.outputs, search.first.ids)
        with search.accounted(), running, followed:
            yield search

    def _enter(
        self, call: GenerationCall, num_completions: int, submission: Submission[Any],
        deadline: Deadline,
    ) -> None:  # fmt: skip
        """Queue the completions of `call`, which `submission` cancels if they are displaced."""
        call.place.max_tokens = max(sampling.max_tokens for sampling in call.options.samplings)
        self._room.enter(
            call.place,
            num_completions=num_completions,
            num_prompt=len(call.prepared.prompt),
            seconds_left=deadline.remaining,
            on_evicted=submission.evict,
        )

    def _followed(
        self, call: GenerationCall, outputs: list[Output], ids: list[int]
    ) -> AbstractContextManager[None]:
        """Trace `call`, if its trace is recorded."""
        digest = call.adapters.source.digest if call.adapters.source else None
        return self._spans.following(
            f"{call.operation} {self._model_name}",
            lambda: request_attributes(
                operation=call.operation,
                model=self._model_name,
                request_id=call.request_id,
                sampling=call.options.used,
                num_prompt=call.prepared.num_prompt,
                adapter=call.adapters.label,
                digest=digest,
            ),
            lambda: answered(outputs, call.observer),
            ids=ids,
            digest=digest,
        )
