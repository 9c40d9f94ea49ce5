"""What template and tokenizer make of a request, before anything of it is in the engine."""

from collections.abc import Mapping
from dataclasses import dataclass

from loramux_server.images.messages import PlacedImage
from loramux_server.reasoning.thinking import Thinking
from loramux_server.services.choice import Choice
from loramux_server.services.generation.tool_use import ToolUse
from loramux_server.text.tokenizer import TextTokenizer
from loramux_server.waiting_room.place import Place


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request as tokens, and what reads its completions."""

    prompt: list[int]
    """What was asked, and behind that what the text begins with that is written, if it is another.
    """
    num_source: int
    """Tokens of it that are read, if another text is written; else 0."""
    images: list[PlacedImage]
    """Those in the prompt, in order."""
    predicted: list[int]
    """What every completion is, for the most part, if the caller is right."""
    tokenizer: TextTokenizer | None
    """The base's, with what the adapter adds; None where the base has none."""
    tool_use: ToolUse | None
    """What takes calls out of a completion; None where there are no tools."""
    thinking: Thinking | None
    """How what is thought is told apart in a completion; None where it is not."""
    end_token: int | None
    """The token with which the adapter ends a text; None if its base does, too."""

    @property
    def num_asked(self) -> int:
        """Tokens of what was asked."""
        return self.num_source or len(self.prompt)

    @property
    def num_begun(self) -> int:
        """Tokens with which the text begins that is written, if it is another; else 0."""
        return len(self.prompt) - self.num_asked

    @property
    def num_image_tokens(self) -> int:
        """How many of the tokens stand for images."""
        return sum(image.length for image in self.images)


@dataclass(frozen=True, slots=True)
class Entered:
    """A request that was let in, with its adapters resolved and its prompt made."""

    request_id: str
    adapters: Choice
    prepared: Prepared
    defaults: Mapping[str, object]
    """What its adapter's package says of sampling."""
    place: Place
    """What it takes of the waiting room."""
