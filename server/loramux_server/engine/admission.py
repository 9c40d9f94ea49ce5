"""Whether a request may be queued: one that can never run, or not in time, is refused at once.

Knows nothing of tensors or clocks.
"""

import math
from typing import Protocol

from loramux_server.engine.pace import Pace
from loramux_server.engine.request import Request
from loramux_server.engine.scheduler import Scheduler
from loramux_server.wire.adapter_source import AdapterSource

Refusal = tuple[str, str]
"""A name of `loramux.v1.ErrorReason` without its prefix, and a message."""


class Memory(Protocol):
    """The part of the adapter cache that is needed here."""

    def fits(self, source: AdapterSource) -> bool:
        """Return whether an adapter could ever be resident."""


class Admission:
    """Refuses requests before anything is allocated for them."""

    def __init__(
        self,
        *,
        scheduler: Scheduler,
        pace: Pace,
        memory: Memory,
        context_length: int,
        max_waiting: int,
        most_drafts: int = 0,
        vocab_size: int | None = None,
        source_length: int = 0,
    ) -> None:
        """Take the parts that decide.

        Args:
            scheduler: Owns the queue.
            pace: Estimates how long steps take.
            memory: The adapter cache.
            context_length: Maximum tokens of a prompt and its completion; the KV blocks hold them.
            max_waiting: Maximum number of requests in the queue.
            most_drafts: Maximum number of tokens that a step may add to a request beyond one.
            vocab_size: Vocabulary size of the base; None accepts any token.
            source_length: Tokens of the context reserved for the input of the encoder, in an
                encoder-decoder; 0 in other models.
        """
        self._scheduler = scheduler
        self._pace = pace
        self._memory = memory
        self._context_length = context_length
        self._max_waiting = max_waiting
        self._most_per_step = 1 + most_drafts
        self._vocab_size = vocab_size
        self._source_length = source_length

    def refusal(self, request: Request) -> Refusal | None:
        """Return why `request` may not be queued, or None if it may."""
        # The frontend checks the prompt, too. Here it would never end, or block the whole queue.
        if len(request.prompt) == request.num_virtual:
            return "INVALID_FIELD", "the prompt has no tokens"
        if request.pictures and request.num_virtual:
            # Nothing defines the multi-dimensional positions of virtual tokens before images.
            return "IMAGES_NOT_SERVED", "its adapter's virtual tokens are not put before images"
        if size := self._vocab_size and (request.own_vocab_size or self._vocab_size):
            for name, tokens in (("prompt", request.prompt), ("prediction", request.prediction)):
                if max(tokens, default=0) >= size:
                    return "INVALID_FIELD", f"the {name} has a token that the model lacks"
        if excess := self._excess(request):
            return "CONTEXT_LENGTH_EXCEEDED", excess
        if request.goes_on:
            return None
        if self._scheduler.num_queued >= self._max_waiting:
            return "QUEUE_FULL", f"{self._max_waiting} requests are waiting already"
        if request.adapter and not self._memory.fits(request.adapter):
            return (
                "ADAPTER_TOO_LARGE",
                f"an adapter of rank {request.adapter.rank} does not fit the adapter memory",
            )
        return self._lateness(request)

    def _excess(self, request: Request) -> str | None:
        """Return why the context is too small for `request`, or None if it is not."""
        if self._source_length:
            num_decoder = request.num_written
            num_source = len(request.prompt) - num_decoder
            max_decoder = self._context_length - self._source_length - 1
            if 1 <= num_source <= self._source_length and 1 <= num_decoder <= max_decoder:
                return None
            return (
                f"the source has {num_source} tokens, the decoder prompt {num_decoder}; "
                f"expected 1 to {self._source_length} and 1 to {max_decoder}"
            )
        if len(request.prompt) <= self._context_length - request.continues:
            return None
        rest = " leaves no room for a completion" if request.continues else " is smaller"
        return (
            f"the prompt has {len(request.prompt)} tokens with those of its adapter; the "
            f"context of {self._context_length}{rest}"
        )

    def _lateness(self, request: Request) -> Refusal | None:
        """Return why `request` cannot finish by its deadline at the speed of recent steps.

        Since it may end after one token, only work that is certain counts: prompts ahead of it in
        the queue, its own prompt without what the prefix cache holds, and `min_tokens` or at least
        one token. Requests of worse priority, or of better priority that arrive later, do not
        count.
        """
        timeout = request.deadline - request.arrival
        # Costs are learnt from steps. An idle engine tries: with costs measured at a bad moment it
        # would refuse for ever.
        if timeout == math.inf or not (self._scheduler.running or self._scheduler.waiting):
            return None
        least_tokens = max(1, request.sampling.min_tokens)
        num_steps = -(-least_tokens // self._most_per_step)
        own = self._pace.least_seconds(self._scheduler.backlog.num_tokens_of(request), num_steps)
        if own > timeout:
            return (
                "DEADLINE_EXCEEDED",
                f"the request cannot be finished within {timeout:.3g} s: at the present rate "
                f"prompt and first tokens alone take {own:.3g} s",
            )
        # The exact count below looks at every block of the queue; mostly this bound suffices.
        if own + self._pace.least_seconds(self._scheduler.backlog.num_tokens, 0) <= timeout:
            return None
        before = self._pace.least_seconds(self._scheduler.backlog.num_tokens_before(request), 0)
        if own + before > timeout:
            return (
                "DEADLINE_UNREACHABLE",
                f"the request cannot be finished within {timeout:.3g} s: the prompts that wait "
                f"before it take {before:.3g} s",
            )
        return None
