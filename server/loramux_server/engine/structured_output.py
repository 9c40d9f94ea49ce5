"""Structured output in the engine: which tokens each request may have next, as far as known.

The allowed tokens are computed while the next step runs (`forms/forms.py`). A row for which that
takes longer than the step is deferred: it is computed again once they are known, and from then on
its request runs only when they are. Those after the tokens of a draft are computed while the step
with the draft runs. If they come too late, the draft ends there, and its request gets no more
drafts. So each constrained request delays the others by a moment at most, and only once.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Protocol

from loramux_server.engine.request import Request
from loramux_server.forms.form import Form
from loramux_server.forms.results import DraftMasks, Next

PATIENCE = 0.02
"""Seconds that a step waits for allowed tokens."""

_MESSAGES = {
    "INVALID_FIELD": "cannot be used: {why}; expected {right}",
    "STRUCTURED_OUTPUT_FAILED": "cannot be enforced any further: {why}",
    "ENGINE_UNAVAILABLE": "cannot be enforced at present: {why}",
    "INTERNAL": "cannot be enforced any further: {why}",
}
_EXPECTED = {
    "json_schema": "a satisfiable JSON schema that uses only the documented keywords",
    "json_object": "a base model whose tokenizer can write JSON",
    "regex": "a regular expression that can match, in the syntax of Rust's regex crate, without "
    "lookarounds and backreferences",
    "choice": "texts that the tokenizer can write",
    "grammar": "a satisfiable grammar in llguidance's variant of Lark",
    "tool_calls": "a satisfiable parameters schema that uses only the documented keywords",
}


class MaskProvider(Protocol):
    """What computes which tokens may come next; see `Forms`."""

    @property
    def has_found(self) -> bool:
        """Whether there are results to take."""

    def begin(self, key: int, form: Form, tenant: str) -> None:
        """Follow the constraint `form` in a new text of `tenant`."""

    def advance(self, chosen: Sequence[tuple[int, Sequence[int]]]) -> None:
        """Advance each text of `chosen` by its tokens."""

    def mask_drafts(self, drafts: Sequence[tuple[int, Sequence[int]]]) -> None:
        """Compute what may follow each token of the texts' `drafts`."""

    def end(self, key: int) -> None:
        """Forget a text."""

    def take(
        self, wanted: Collection[int] = (), seconds: float = 0.0, drafted: Collection[int] = ()
    ) -> list[Next | DraftMasks]:
        """Return the results, once all that are wanted are there or time is up."""


class StructuredOutput:
    """Tells requests which tokens structured output allows next."""

    def __init__(
        self, masks: MaskProvider | None, fail: Callable[[Request, str, str, str], None]
    ) -> None:
        """Begin without requests.

        Args:
            masks: Computes which tokens may come next; None if the base has no tokenizer.
            fail: Called with a request, a reason, a message and the field at fault.
        """
        self._masks = masks
        self._fail = fail
        self._requests: dict[int, Request] = {}
        self._slow: set[Request] = set()
        """Requests that were deferred."""
        self._drafted: set[Request] = set()
        """Requests for which the allowed tokens after their draft are being computed."""
        self._undrafted: set[Request] = set()
        """Requests for which those once came too late."""
        self._compiled: list[float] = []

    @property
    def has_found(self) -> bool:
        """Whether `land` would find results."""
        return self._masks is not None and self._masks.has_found

    def take_compiled(self) -> list[float]:
        """Return, once, the seconds that compiling each constraint took."""
        compiled, self._compiled = self._compiled, []
        return compiled

    def begin(self, request: Request) -> None:
        """Hold `request` until its first allowed tokens are known, if it has structured output."""
        if form := request.sampling.form:
            if self._masks is None:
                self._fail(request, "INVALID_FIELD", "the base model has no tokenizer", form.field)
                return
            request.is_held = True
            self._requests[request.request_id] = request
            self._masks.begin(request.request_id, form, request.tenant)

    def land(self) -> None:
        """Pass results on to requests, and fail those in which no token may come next."""
        if self.has_found:
            self._take()

    def mask_drafts(self, drafts: Mapping[Request, Sequence[int]]) -> None:
        """Begin to compute what may follow each token of `drafts`, for structured output."""
        self._drafted = {request for request in drafts if request.sampling.form}
        if self._drafted:
            assert self._masks is not None
            self._masks.mask_drafts([(r.request_id, drafts[r]) for r in self._drafted])

    def wait(self, requests: Iterable[Request]) -> None:
        """Wait a moment for the allowed tokens of `requests`, also after their draft tokens."""
        unknown = [r for r in requests if r.sampling.form and r.shape.allowed is None]
        if not (unknown or self._drafted):
            return
        self._take(unknown, PATIENCE)
        for request in unknown:
            # One that failed meanwhile is no longer among them.
            if request.shape.allowed is None and request.request_id in self._requests:
                request.is_held, request.shape.supports_drafts = True, False
                self._slow.add(request)
        for request in self._drafted:
            request.shape.supports_drafts = False
        self._undrafted |= self._drafted
        self._drafted.clear()

    def advance(self, chosen: Mapping[Request, Sequence[int]]) -> None:
        """Begin to compute what may follow the tokens that were `chosen` in each request."""
        for request, tokens in chosen.items():
            shape, size = request.shape, len(tokens)
            shape.allowed, shape.draft_masks = None, ()
            request.is_held = request in self._slow
            is_forced = list(shape.forced[:size]) == list(tokens)
            shape.forced = shape.forced[size:] if is_forced else ()
        if chosen:
            assert self._masks is not None
            self._masks.advance([(r.request_id, tokens) for r, tokens in chosen.items()])

    def end(self, request: Request) -> None:
        """Forget `request`."""
        if self._requests.pop(request.request_id, None):
            assert self._masks is not None
            for requests in (self._slow, self._drafted, self._undrafted):
                requests.discard(request)
            self._masks.end(request.request_id)

    def check(self) -> None:
        """Assert that nothing is kept of requests that have ended."""
        kept = self._slow | self._undrafted
        assert kept <= set(self._requests.values()), "an ended request is kept as slow"
        assert not self._drafted, "tokens after a draft are computed for no step"

    def _take(self, wanted: Sequence[Request] = (), seconds: float = 0.0) -> None:
        """Process results, once all that are wanted are there or time is up."""
        assert self._masks is not None
        keys, drafted = ([r.request_id for r in part] for part in (wanted, self._drafted))
        for found in self._masks.take(keys, seconds, drafted):
            request = self._requests.get(found.key)
            if isinstance(found, DraftMasks):
                if request and request in self._drafted:
                    self._drafted.remove(request)
                    request.shape.draft_masks = found.masks
                continue
            if found.seconds is not None:
                self._compiled.append(found.seconds)
            if request is None:
                continue
            request.is_held = False
            request.shape.allowed, request.shape.forced = found.allowed, found.forced
            request.shape.supports_drafts = (
                found.supports_drafts and request not in self._slow | self._undrafted
            )
            if found.allowed is None:
                self._give_up(request, found)

    def _give_up(self, request: Request, found: Next) -> None:
        form = request.sampling.form
        assert form is not None
        message = _MESSAGES[found.reason].format(why=found.why, right=_EXPECTED[form.kind])
        self._fail(request, found.reason, f"{form.field} {message}", form.field)
