"""Requests whose texts have a form: what each may be told next, as far as it is known.

What may follow a token is found out while the next step runs (`forms/forms.py`). A row for which
that takes longer than the step is put off: it is computed again once it is known, and from then on
its request runs only when it is. So a form keeps requests without one waiting for no more than a
moment, once.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Protocol

from loramux_server.engine.request import Request
from loramux_server.forms.form import Form
from loramux_server.forms.forms import Next

PATIENCE = 0.02
"""Seconds that a step waits for what may come next."""

_SAID = {
    "INVALID_FIELD": "cannot be used: {why}; expected {right}",
    "STRUCTURED_OUTPUT_FAILED": "cannot be followed any further: {why}",
    "ENGINE_UNAVAILABLE": "cannot be followed at present: {why}",
    "INTERNAL": "cannot be followed any further: {why}",
}
_RIGHT = {
    "json_schema": "a JSON schema that some text meets, with the keywords that the documentation "
    "lists",
    "json_object": "a base whose tokenizer makes text",
    "regex": "a regular expression that some text matches, as Rust's regex crate takes it, without "
    "look-around and back-references",
    "choice": "texts that the tokenizer can make",
    "grammar": "a grammar of some text, in the variant of Lark that llguidance takes",
    "tool_calls": "parameters that some object meets, with the keywords that the documentation "
    "lists",
}


class Follower(Protocol):
    """What knows which tokens may come next; see `Forms`."""

    @property
    def has_found(self) -> bool:
        """Whether there is something to take."""

    def begin(self, key: int, form: Form, tenant: str) -> None:
        """Follow a text of `tenant` from its beginning."""

    def advance(self, chosen: Sequence[tuple[int, int]]) -> None:
        """Go on in each text of `chosen` with a token."""

    def end(self, key: int) -> None:
        """Forget a text."""

    def take(self, wanted: Collection[int] = (), seconds: float = 0.0) -> list[Next]:
        """Return what was found out, when all `wanted` is, or time is up."""


class Shaping:
    """Tells requests what may come next in them."""

    def __init__(
        self, follower: Follower | None, fail: Callable[[Request, str, str, str], None]
    ) -> None:
        """Begin without requests.

        Args:
            follower: Knows what may come next; None where the base has no text.
            fail: Called with a request, a reason, a message and the field at fault.
        """
        self._follower = follower
        self._fail = fail
        self._requests: dict[int, Request] = {}
        self._slow: set[Request] = set()
        """Those that were put off."""
        self._compiled: list[float] = []

    @property
    def has_found(self) -> bool:
        """Whether `land` would find something."""
        return self._follower is not None and self._follower.has_found

    def take_compiled(self) -> list[float]:
        """Return the seconds of each form that was compiled since the last time."""
        compiled, self._compiled = self._compiled, []
        return compiled

    def begin(self, request: Request) -> None:
        """Hold `request` until it is known how its text may begin, if that has a form."""
        if form := request.sampling.form:
            if self._follower is None:
                self._fail(request, "INVALID_FIELD", "the base has no tokenizer", form.field)
                return
            request.is_held = True
            self._requests[request.request_id] = request
            self._follower.begin(request.request_id, form, request.tenant)

    def land(self, wanted: Collection[int] = (), seconds: float = 0.0) -> None:
        """Tell requests what was found out, and fail those in which nothing may come next.

        Args:
            wanted: Requests to wait for.
            seconds: How long.
        """
        if self._follower is None or not (wanted or self._follower.has_found):
            return
        for found in self._follower.take(wanted, seconds):
            if found.seconds is not None:
                self._compiled.append(found.seconds)
            request = self._requests.get(found.key)
            if request is None:
                continue
            request.is_held = False
            request.allowed = found.allowed
            if found.allowed is None:
                self._give_up(request, found)

    def wait(self, requests: Iterable[Request]) -> None:
        """Wait a moment until it is known what may come next in each of `requests`."""
        unknown = [r for r in requests if r.sampling.form and r.allowed is None]
        if not unknown:
            return
        self.land([request.request_id for request in unknown], PATIENCE)
        for request in unknown:
            # One that was given up meanwhile is none of them any more.
            if request.allowed is None and request.request_id in self._requests:
                request.is_held = True
                self._slow.add(request)

    def advance(self, requests: Sequence[Request]) -> None:
        """Find out what may follow the last token of each of `requests`."""
        for request in requests:
            request.allowed = None
            request.is_held = request in self._slow
        if requests:
            assert self._follower is not None
            self._follower.advance([(r.request_id, r.output[-1]) for r in requests])

    def end(self, request: Request) -> None:
        """Forget `request`."""
        if self._requests.pop(request.request_id, None):
            assert self._follower is not None
            self._slow.discard(request)
            self._follower.end(request.request_id)

    def check(self) -> None:
        """Assert that nothing is kept of requests that have ended."""
        assert self._slow <= set(self._requests.values()), "one that has ended is kept as slow"

    def _give_up(self, request: Request, found: Next) -> None:
        form = request.sampling.form
        assert form is not None
        said = _SAID[found.reason].format(why=found.why, right=_RIGHT[form.kind])
        self._fail(request, found.reason, f"{form.field} {said}", form.field)
