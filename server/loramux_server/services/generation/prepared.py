"""A tokenized request, before it is submitted to the engine."""

from collections.abc import Mapping
from dataclasses import dataclass

from loramux_server.images.messages import PlacedImage
from loramux_server.reasoning.thinking import Thinking
from loramux_server.services.generation.tool_use import ToolUse
from loramux_server.services.resolved_adapters import ResolvedAdapters
from loramux_server.text.tokenizer import TextTokenizer
from loramux_server.waiting_room.place import Place


@dataclass(frozen=True, slots=True)
class Prepared:
    """A tokenized request, and how its completions are read."""

    prompt: list[int]
    """The prompt; for an encoder-decoder, the source followed by the decoder prompt."""
    num_source: int
    """Tokens of an encoder-decoder's source; else 0."""
    images: list[PlacedImage]
    """Images of the prompt, in order."""
    predicted: list[int]
    """Tokens of the predicted output; empty if there is none."""
    bad_words: tuple[tuple[int, ...], ...]
    """Sequences of tokens that are not generated."""
    tokenizer: TextTokenizer | None
    """The base's tokenizer, with the adapter's added tokens; None if the base has none."""
    tool_use: ToolUse | None
    """How tool calls are demanded and parsed; None if there are no tools."""
    thinking: Thinking | None
    """How reasoning is separated from the answer; None if it is not."""
    end_token: int | None
    """An end token of the adapter that its base does not have as such; None if there is none."""

    @property
    def num_prompt(self) -> int:
        """Tokens of the prompt, without the decoder prompt."""
        return self.num_source or len(self.prompt)

    @property
    def num_decoder_prompt(self) -> int:
        """Tokens of an encoder-decoder's decoder prompt; else 0."""
        return len(self.prompt) - self.num_prompt

    @property
    def num_image_tokens(self) -> int:
        """Tokens that stand for images."""
        return sum(image.length for image in self.images)


@dataclass(frozen=True, slots=True)
class AdmittedRequest:
    """An admitted request, with its adapters resolved and its prompt built."""

    request_id: str
    adapters: ResolvedAdapters
    prepared: Prepared
    defaults: Mapping[str, object]
    """Generation defaults of its adapter's package."""
    place: Place
    """What it occupies in the waiting room."""
