"""A checked request for completions, with all that it takes while it is under way."""

from dataclasses import dataclass

from loramux.v1 import generation_pb2
from loramux_server.access.quotas import Reserved
from loramux_server.images.messages import PlacedImage
from loramux_server.reasoning.thinking import Thinking
from loramux_server.services.choice import Choice
from loramux_server.services.generation.beams import BeamOptions
from loramux_server.services.generation.output import Output
from loramux_server.services.generation.sampling import TextOptions
from loramux_server.services.generation.tool_use import ToolUse
from loramux_server.services.observer import Observer
from loramux_server.text.tokenizer import TextTokenizer
from loramux_server.waiting_room.place import Place
from loramux_server.wire.messages import Started
from loramux_server.wire.sampling import Sampling


@dataclass(frozen=True, slots=True)
class GenerationCall:
    """A checked request, on its way."""

    request_id: str
    tenant: str
    """Whose request it is, which need not be whose adapter it is."""
    prompt: list[int]
    """What was asked, and behind that what the text begins with that is written, if it is another.
    """
    num_source: int
    """Tokens of it that are read, if another text is written; else 0."""
    images: list[PlacedImage]
    """Those in the prompt, in order."""
    predicted: list[int]
    """What every completion is, for the most part, if the caller is right."""
    adapters: Choice
    samplings: list[Sampling]
    used: generation_pb2.SamplingParams
    text: TextOptions
    tool_use: ToolUse | None
    thinking: Thinking | None
    observer: Observer
    reserved: Reserved
    """Tokens of its tenant's quota."""
    place: Place
    """What it takes of the waiting room."""
    operation: str
    """What traces call it."""
    ends: frozenset[int]
    """Tokens with which the adapter ends a text, beside those of its base."""
    beams: BeamOptions | None
    """What a beam search is to find; None where tokens are chosen one by one."""

    @property
    def num_asked(self) -> int:
        """Tokens of what was asked."""
        return self.num_source or len(self.prompt)

    @property
    def tells_prompt(self) -> bool:
        """Whether log-probabilities of the prompt are told."""
        return self.used.HasField("prompt_logprobs")

    @property
    def is_cut_off(self) -> bool:
        """Whether a completion may end before the engine ends it.

        What follows a stop string, or the one call that may be, is made in vain.
        """
        return bool(self.text.stops) or bool(self.tool_use and not self.tool_use.is_parallel)

    def started(self, started: Started) -> None:
        """Note that a completion left the engine's queue."""
        self.place.started()
        self.observer.started(started)

    def first_response(self) -> generation_pb2.StreamGenerateResponse:
        """Return what the first response tells beside a piece of a completion."""
        return generation_pb2.StreamGenerateResponse(
            request_id=self.request_id,
            adapter=self.adapters.identity,
            adapters=self.adapters.identities,
            sampling=self.used,
        )

    def sum_up(self, response: generation_pb2.StreamGenerateResponse, num_made: int) -> None:
        """Tell in the last response what all completions took, of which tokens `num_made`."""
        response.usage.prompt_tokens = self.num_asked
        response.usage.completion_tokens = num_made
        response.usage.cached_tokens = self.observer.cached_tokens(is_shared=True)
        response.timing.CopyFrom(self.observer.timing())

    def output(self, tokenizer: TextTokenizer | None, index: int) -> Output:
        """Return what makes text of the completion at `index`."""
        min_tokens = self.samplings[index].min_tokens
        if tokenizer is None:
            return Output(index, None, lambda _: b"", self.text, min_tokens)
        # What the readers look for is shown to them, be it a control token or not.
        marked = [use.syntax for use in (self.tool_use, self.thinking) if use]
        shown = frozenset(token for syntax in marked for token in syntax.ids.values())
        return Output(
            index,
            tokenizer.decoder(
                self.prompt[self.num_source :],
                skip_special=self.text.skip_special,
                ends=self.ends,
                shown=shown,
            ),
            tokenizer.bytes_of,
            self.text,
            min_tokens,
            self.thinking.reader() if self.thinking else None,
            self.tool_use.reader() if self.tool_use else None,
        )
