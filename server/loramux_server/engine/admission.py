"""Whether a request may be queued: what can never run, or not in time, is refused at once.

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
    """What has to be known of the adapter memory."""

    def fits(self, source: AdapterSource) -> bool:
        """Return whether an adapter could ever be resident."""


class Admission:
    """Refuses requests before anything is held for them."""

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
        """Put together what decides.

        Args:
            scheduler: Has the queue.
            pace: Knows what steps cost.
            memory: That of adapters.
            context_length: Tokens that a prompt and its completion may have; the blocks hold them.
            max_waiting: Most requests in the queue.
            most_drafts: Most tokens that a step may give to a request beside the first.
            vocab_size: Tokens of the base; None where any will do.
            source_length: How many tokens of a context are for what an encoder reads, where a
                decoder writes the others; 0 where there are not both.
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
        # The frontend checks the prompt too; here it would never end, or hold up the whole queue.
        if len(request.prompt) == request.num_virtual:
            return "INVALID_FIELD", "the prompt has no tokens"
        if request.pictures and request.num_virtual:
            # Whether such tokens are counted by time, height and width, nobody says.
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
            num_begun = request.num_written
            num_source = len(request.prompt) - num_begun
            most_begun = self._context_length - self._source_length - 1
            if 1 <= num_source <= self._source_length and 1 <= num_begun <= most_begun:
                return None
            return (
                f"{num_source} tokens are to be read, and what is written begins with {num_begun}; "
                f"expected 1 to {self._source_length} and 1 to {most_begun}"
            )
        if len(request.prompt) <= self._context_length - request.continues:
            return None
        rest = " leaves no room for a completion" if request.continues else " is smaller"
        return (
            f"the prompt has {len(request.prompt)} tokens with those of its adapter; the "
            f"context of {self._context_length}{rest}"
        )

    def _lateness(self, request: Request) -> Refusal | None:
        """Return why `request` cannot be finished in time at the rate of the last steps.

        It may end after one token. So no more is counted than what has to be done in any case: the
        prompts that go before it in the queue, its own as far as its keys are not there, a first
        token, and those that it may not end before.
        """
        timeout = request.deadline - request.arrival
        # What steps cost is learnt from steps. An engine without work tries: if it went by costs of
        # a bad moment, it would refuse for ever.
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
        # The exact count looks at every block of the queue; mostly this one answers.
        if own + self._pace.least_seconds(self._scheduler.backlog.num_tokens, 0) <= timeout:
            return None
        before = self._pace.least_seconds(
            self._scheduler.backlog.num_tokens_before(request.tenant), 0
        )
        if own + before > timeout:
            return (
                "DEADLINE_UNREACHABLE",
                f"the request cannot be finished within {timeout:.3g} s: the prompts that wait "
                f"before it take {before:.3g} s",
            )
        return None
