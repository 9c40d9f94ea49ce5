"""When a request has ended: it says so, or is as long as it may be."""

from loramux_server.engine.request import Request
from loramux_server.wire.messages import Finish


class Ends:
    """Knows where texts end."""

    def __init__(
        self, context_length: int, eos_token_ids: frozenset[int], source_length: int = 0
    ) -> None:
        """Know how long texts may be.

        Args:
            context_length: The most tokens of a context.
            eos_token_ids: Those with which the model ends a text.
            source_length: How many of a context are for what an encoder reads.
        """
        self._most_written = context_length - source_length
        self._eos_token_ids = eos_token_ids

    def reason(self, request: Request, token: int) -> Finish | None:
        """Return why `request` ends with `token`, the last of its output; None if it goes on."""
        if len(request.output) > request.sampling.min_tokens and self.is_end(request, token):
            return Finish.STOP
        return Finish.LENGTH if self.has_length(request) else None

    def is_end(self, request: Request, token: int) -> bool:
        """Return whether `token` ends `request`, if that may end."""
        sampling = request.sampling
        is_eos = token in self._eos_token_ids and not sampling.ignore_eos
        return is_eos or token in sampling.stop_token_ids

    def has_length(self, request: Request, num_coming: int = 0) -> bool:
        """Return whether `request` is as long as it may be, with `num_coming` tokens more."""
        return self.num_before(request) <= num_coming

    def num_before(self, request: Request) -> int:
        """Return how many tokens `request` may still have."""
        return min(
            request.sampling.max_tokens - len(request.output),
            self._most_written - request.num_written,
        )
