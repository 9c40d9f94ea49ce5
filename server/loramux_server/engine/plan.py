"""What the next step computes."""

from dataclasses import dataclass

from loramux_adapters.embedding import Pooling
from loramux_server.engine.request import Request
from loramux_server.engine.state_keeper import StateUse


@dataclass(frozen=True, slots=True)
class Chunk:
    """The tokens of one request that the next step computes."""

    request: Request
    start: int
    num_tokens: int
    is_ahead: bool = False
    """Whether its one token is what a step gives that still runs."""
    num_filled: int = 0
    """Tokens before `start` whose keys and values the adapter brings."""
    draft: tuple[int, ...] = ()
    """Tokens that are computed behind it, in case that they are what comes."""
    state: StateUse | None = None
    """Where its recurrent layers find and leave what they know; None where there are none."""

    @property
    def end(self) -> int:
        """Position after the last token."""
        return self.start + self.num_tokens

    @property
    def length(self) -> int:
        """Tokens that are computed, those of the draft included."""
        return self.num_tokens + len(self.draft)

    @property
    def tokens(self) -> list[int]:
        """What is computed; of one that is ahead, whatever."""
        if self.is_ahead:
            return [0]
        return [*self.request.tokens(self.start, self.end), *self.draft]

    @property
    def position(self) -> int:
        """Position in the output of the token that the step ends with, if it does."""
        # Of one that is ahead the output still lacks the token that the step before gives.
        return self.end - len(self.request.prompt)

    @property
    def digest(self) -> str | None:
        """The adapter of its last token; None for the base model."""
        return self.request.digest if self.end > self.request.active_from else None

    @property
    def num_inactive(self) -> int:
        """Tokens at its beginning that come before the adapter begins."""
        active_from = self.request.active_from
        return min(active_from - self.start, self.num_tokens) if active_from > self.start else 0

    @property
    def samples(self) -> bool:
        """Whether the step ends with a new token for this request."""
        return self.is_ahead or (self.is_last and self.request.continues)

    @property
    def is_last(self) -> bool:
        """Whether nothing of the request is left to be computed."""
        return self.end == self.request.num_tokens

    @property
    def read(self) -> range:
        """Positions whose hidden states are read."""
        if self.request.reads_all:
            return range(self.start, self.end)
        if self.is_last and self.request.is_read:
            if self.request.pooling is Pooling.FIRST:  # of a text that is read as a whole
                return range(self.start, self.start + 1)
            return range(self.end - 1, self.end)
        return range(0)

    @property
    def told(self) -> range:
        """Positions of the prompt whose next token's log-probability is told."""
        request = self.request
        return range(max(self.start, request.num_told), min(self.end, len(request.prompt) - 1))

    @property
    def ends_prompt(self) -> bool:
        """Whether with it all is known that is told of the prompt."""
        return self.end >= len(self.request.prompt)

    @property
    def is_plain(self) -> bool:
        """Whether the device alone can tell what comes of it."""
        request = self.request
        is_simple = request.continues and request.sampling.is_plain and not self.draft
        return is_simple and not request.tells_prompt


@dataclass(frozen=True, slots=True)
class Plan:
    """One step's work."""

    chunks: list[Chunk]
    started: list[Request]
    """Requests that leave the queue for the first time."""
    urgent: str | None
    """The adapter whose turn it is: no request with another starts before its request does."""

    @property
    def num_tokens(self) -> int:
        """Tokens that the step computes."""
        return sum(chunk.length for chunk in self.chunks)

    @property
    def num_draft_tokens(self) -> int:
        """Those of them that are drafts."""
        return sum(len(chunk.draft) for chunk in self.chunks)

    @property
    def num_decode_tokens(self) -> int:
        """Those of them that are the only one of their request beside its draft."""
        return sum(chunk.num_tokens == 1 for chunk in self.chunks)

    @property
    def num_prompt_tokens(self) -> int:
        """The others."""
        return self.num_tokens - self.num_draft_tokens - self.num_decode_tokens
