"""When a request ends: at a stop token, or at its maximum length."""

from loramux_server.engine.request import Request
from loramux_server.wire.messages import Finish


class Ends:
    """Decides whether requests end."""

    def __init__(
        self, context_length: int, eos_token_ids: frozenset[int], source_length: int = 0
    ) -> None:
        """Set the limits for all requests.

        Args:
            context_length: Maximum tokens of a request.
            eos_token_ids: End-of-sequence tokens.
            source_length: The part of the context that is for an encoder's input.
        """
        self._most_written = context_length - source_length
        self._eos_token_ids = eos_token_ids

    def reason(self, request: Request, token: int) -> Finish | None:
        """Return why `request` ends with `token`, the last of its output; None if it does not."""
        if len(request.output) > request.sampling.min_tokens and self.is_end(request, token):
            return Finish.STOP
        return Finish.LENGTH if self.has_length(request) else None

    def is_end(self, request: Request, token: int) -> bool:
        """Return whether `token` is a stop token of `request`; `min_tokens` is ignored."""
        sampling = request.sampling
        is_eos = token in self._eos_token_ids and not sampling.ignore_eos
        return is_eos or token in sampling.stop_token_ids

    def has_length(self, request: Request, num_coming: int = 0) -> bool:
        """Return whether `request` has its maximum length after `num_coming` more tokens."""
        return self.num_before(request) <= num_coming

    def num_before(self, request: Request) -> int:
        """Return how many more tokens `request` may have."""
        return min(
            request.sampling.max_tokens - len(request.output),
            self._most_written - request.num_written,
        )
