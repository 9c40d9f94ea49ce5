"""A checked generation request, with all resources that it holds while it runs."""

from collections.abc import Iterable
from dataclasses import dataclass

from loramux.v1 import generation_pb2
from loramux_server.access.quotas import Reserved
from loramux_server.services.generation.options import Options
from loramux_server.services.generation.output import Output
from loramux_server.services.generation.prepared import Prepared
from loramux_server.services.observer import Observer
from loramux_server.services.resolved_adapters import ResolvedAdapters
from loramux_server.waiting_room.place import Place
from loramux_server.wire.messages import Started


@dataclass(frozen=True, slots=True)
class GenerationCall:
    """A checked request in progress."""

    request_id: str
    tenant: str
    """The tenant of the caller, not necessarily the adapter's."""
    cache_salt: str
    operation: str
    """Its operation name in traces."""
    adapters: ResolvedAdapters
    prepared: Prepared
    options: Options
    observer: Observer
    place: Place
    """What it occupies in the waiting room."""
    reserved: Reserved
    """Tokens reserved from the tenant's quota."""

    @property
    def returns_prompt_logprobs(self) -> bool:
        """Whether log-probabilities of the prompt are reported."""
        return self.options.used.HasField("prompt_logprobs")

    @property
    def is_cut_off(self) -> bool:
        """Whether a completion may end before the engine ends it.

        Tokens after a stop string, or after the only call that is allowed, are generated in vain.
        """
        tool_use = self.prepared.tool_use
        return bool(self.options.text.stops) or bool(tool_use and not tool_use.is_parallel)

    def started(self, started: Started) -> None:
        """Record that a completion left the engine's queue."""
        self.place.started()
        self.observer.started(started)

    def first_response(self) -> generation_pb2.StreamGenerateResponse:
        """Return the fields of the first response other than its chunk."""
        return generation_pb2.StreamGenerateResponse(
            request_id=self.request_id,
            adapter=self.adapters.identity,
            adapters=self.adapters.identities,
            sampling=self.options.used,
            prompt_tokens=self.prepared.num_prompt,
        )

    def sum_up(
        self,
        response: generation_pb2.StreamGenerateResponse,
        outputs: Iterable[Output],
        num_generated: int,
    ) -> None:
        """Fill in usage and timing of the last response.

        Args:
            response: The last response.
            outputs: All completions.
            num_generated: Tokens generated for them.
        """
        response.usage.prompt_tokens = self.prepared.num_prompt
        response.usage.completion_tokens = num_generated
        response.usage.reasoning_tokens = sum(output.num_reasoning for output in outputs)
        response.usage.cached_tokens = self.observer.cached_tokens(is_shared=True)
        response.timing.CopyFrom(self.observer.timing())

    def outputs(self) -> list[Output]:
        """Return the post-processor of each completion."""
        return [
            self._output(index, sampling.min_tokens)
            for index, sampling in enumerate(self.options.samplings)
        ]

    def _output(self, index: int, min_tokens: int) -> Output:
        prepared, text, thinking = self.prepared, self.options.text, self.options.thinking
        tokenizer, tool_use, end = prepared.tokenizer, prepared.tool_use, prepared.end_token
        if tokenizer is None:
            return Output(index, None, lambda _: b"", text, min_tokens)
        # The readers need to see their markers, even those that are control tokens.
        marked = [use.syntax for use in (tool_use, thinking) if use]
        shown = frozenset(token for syntax in marked for token in syntax.ids.values())
        return Output(
            index,
            tokenizer.decoder(
                prepared.prompt[prepared.num_source :],
                skip_special=text.skip_special,
                ends=frozenset() if end is None else frozenset([end]),
                shown=shown,
            ),
            tokenizer.bytes_of,
            text,
            min_tokens,
            thinking.reader() if thinking else None,
            tool_use.reader() if tool_use else None,
        )
