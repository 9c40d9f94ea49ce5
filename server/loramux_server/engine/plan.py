"""The work of one step: a chunk of tokens for each request in it."""

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
    """Whether its one token is the result of a step that is still running."""
    num_filled: int = 0
    """Tokens before `start` whose keys and values come with the adapter (prefix tuning)."""
    draft: tuple[int, ...] = ()
    """Speculative tokens that are computed after it."""
    state: StateUse | None = None
    """State slots that its recurrent layers read and write; None if there are no such layers."""

    @property
    def end(self) -> int:
        """Position after the last token."""
        return self.start + self.num_tokens

    @property
    def length(self) -> int:
        """Tokens that are computed, including the draft."""
        return self.num_tokens + len(self.draft)

    @property
    def tokens(self) -> list[int]:
        """The tokens that are computed; a placeholder if the token is not known yet."""
        if self.is_ahead:
            return [0]
        return [*self.request.tokens(self.start, self.end), *self.draft]

    @property
    def position(self) -> int:
        """Position in the output of the token that the step samples, if it does."""
        # If `is_ahead`, the output still lacks the token of the step before.
        return self.end - len(self.request.prompt)

    @property
    def digest(self) -> str | None:
        """The adapter of its last token; None for the base model."""
        return self.request.digest if self.end > self.request.active_from else None

    @property
    def num_inactive(self) -> int:
        """Tokens at its beginning for which the adapter is not active yet."""
        active_from = self.request.active_from
        return min(active_from - self.start, self.num_tokens) if active_from > self.start else 0

    @property
    def samples(self) -> bool:
        """Whether the step samples a new token for this request."""
        return self.is_ahead or (self.is_last and self.request.continues)

    @property
    def is_last(self) -> bool:
        """Whether it reaches the last token that the request has."""
        return self.end == self.request.num_tokens

    @property
    def read(self) -> range:
        """Positions whose hidden states are the result of the request."""
        if self.request.reads_all:
            return range(self.start, self.end)
        if self.is_last and self.request.is_read:
            if self.request.pooling is Pooling.FIRST:  # of an encoder
                return range(self.start, self.start + 1)
            return range(self.end - 1, self.end)
        return range(0)

    @property
    def prompt_logprob_positions(self) -> range:
        """Positions of the prompt at which the next token's log-probability is returned."""
        request = self.request
        return range(
            max(self.start, request.num_logprobs_done), min(self.end, len(request.prompt) - 1)
        )

    @property
    def ends_prompt(self) -> bool:
        """Whether it completes the log-probabilities of the prompt."""
        return self.end >= len(self.request.prompt)

    @property
    def is_plain(self) -> bool:
        """Whether the device can choose its next token without the host."""
        request = self.request
        is_simple = request.continues and request.sampling.is_plain and not self.draft
        return is_simple and not request.returns_prompt_logprobs


@dataclass(frozen=True, slots=True)
class Plan:
    """The work of one step."""

    chunks: list[Chunk]
    started: list[Request]
    """Requests that leave the queue for the first time."""
    urgent: str | None
    """The adapter whose turn it is (see `Bypass`), if a request was overtaken often enough."""

    @property
    def num_tokens(self) -> int:
        """Tokens that the step computes."""
        return sum(chunk.length for chunk in self.chunks)

    @property
    def num_draft_tokens(self) -> int:
        """Those of them that are speculative."""
        return sum(len(chunk.draft) for chunk in self.chunks)

    @property
    def num_decode_tokens(self) -> int:
        """Those of them that are the only token of their request, drafts aside."""
        return sum(chunk.num_tokens == 1 for chunk in self.chunks)

    @property
    def num_prompt_tokens(self) -> int:
        """The others."""
        return self.num_tokens - self.num_draft_tokens - self.num_decode_tokens
