"""Which tokens may come next in texts that have a form, found out beside the steps.

A thread talks with the process that knows (`forms/process.py`). Where that ends, the text that it
was at is given up; the others are taken up again by a new one, each when it is next asked for.
"""

import hashlib
import itertools
import logging
import queue
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial

from loramux_server.forms.form import Form
from loramux_server.forms.messages import (
    Advance,
    Allowed,
    Begin,
    Broken,
    End,
    Setup,
    ToWorker,
    encode,
)
from loramux_server.forms.process import LostError, NotStartedError, Process, UnusableError

_log = logging.getLogger(__name__)

REST_SECONDS = 60.0
"""A form for which a process was lost is refused for so long: for others it is a loss, too."""
MAX_LOST = 256
"""Forms of which that is remembered."""


@dataclass(frozen=True, slots=True)
class Next:
    """What may come next in one text, or why nothing may."""

    key: int
    allowed: bytes | None
    """A bit for each token, the lowest of a byte first; None where nothing may."""
    reason: str = ""
    """Then: a name of `loramux.v1.ErrorReason` without its prefix."""
    why: str = ""
    seconds: float | None = None
    """How long its form took to compile, if it had to be."""


_NOW, _LATER = range(2)


@dataclass(frozen=True, slots=True, order=True)
class _Job:
    when: int
    number: int
    work: Callable[[], None] | None = field(compare=False)
    """None ends the thread."""


@dataclass(slots=True)
class _Text:
    form: Form
    tokens: list[int] = field(default_factory=list)


class Forms:
    """Follows the texts of one engine; no process is started before the first of them."""

    def __init__(self, setup: Setup, wake: Callable[[], None]) -> None:
        """Prepare.

        Args:
            setup: What the process needs to know.
            wake: Called, from the thread, when there is something to `take`.
        """
        self._setup = setup
        self._wake = wake
        self._jobs: queue.PriorityQueue[_Job] = queue.PriorityQueue()
        self._numbers = itertools.count()
        self._found: list[Next] = []
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._ended: set[int] = set()
        """Texts that are to be forgotten, of which some may not have begun."""
        # What follows is the thread's own.
        self._process: Process | None = None
        self._texts: dict[int, _Text] = {}
        self._known: set[int] = set()
        """Texts that the process follows."""
        self._unusable: UnusableError | None = None
        self._lost_forms: OrderedDict[bytes, tuple[float, str]] = OrderedDict()
        """Digest -> when it may be tried again, and why not before."""

    @property
    def has_found(self) -> bool:
        """Whether there is something to `take`."""
        return bool(self._found)

    def begin(self, key: int, form: Form) -> None:
        """Follow a text from its beginning."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="forms", daemon=True)
            self._thread.start()
        self._do(_LATER, partial(self._begin, key, form))

    def advance(self, chosen: Sequence[tuple[int, int]]) -> None:
        """Go on in each text of `chosen` with a token."""
        # Before forms that may take long: these texts are under way.
        self._do(_NOW, partial(self._advance, chosen))

    def end(self, key: int) -> None:
        """Forget a text."""
        self._ended.add(key)
        self._do(_LATER, partial(self._end, key))

    def take(self, wanted: Collection[int] = (), seconds: float = 0.0) -> list[Next]:
        """Return what was found out since the last time, when all `wanted` is, or time is up."""
        with self._changed:
            self._changed.wait_for(
                lambda: {found.key for found in self._found}.issuperset(wanted), seconds
            )
            found, self._found = self._found, []
        return found

    def close(self) -> None:
        """End thread and process."""
        if self._thread:
            self._do(_LATER, None)
            self._thread.join()

    def _do(self, when: int, work: Callable[[], None] | None) -> None:
        self._jobs.put(_Job(when, next(self._numbers), work))

    def _work(self) -> None:
        while (work := self._jobs.get().work) is not None:
            try:
                work()
            except Exception:  # nobody may wait for an answer that never comes
                _log.exception("forms cannot be followed")
                self._drop()
                for key in list(self._texts):
                    self._give_up(key, "INTERNAL", "an internal error")
        self._drop()

    def _drop(self) -> None:
        """End the process; texts that it follows are another's to take up."""
        if self._process:
            self._process.close()
            self._process = None
        self._known.clear()

    def _begin(self, key: int, form: Form) -> None:
        if key in self._ended:
            return
        self._texts[key] = _Text(form)
        until, why = self._lost_forms.get(_digest(form), (0.0, ""))
        if time.monotonic() < until:
            self._give_up(key, "INVALID_FIELD", why)
            return
        self._follow([key])

    def _advance(self, chosen: Sequence[tuple[int, int]]) -> None:
        # One that was given up meanwhile is none any more.
        live = [(key, token) for key, token in chosen if key in self._texts]
        for key, token in live:
            self._texts[key].tokens.append(token)
        self._follow([key for key, _ in live])

    def _end(self, key: int) -> None:
        self._ended.remove(key)
        self._texts.pop(key, None)
        if self._process and key in self._known:
            self._known.remove(key)
            self._process.tell(End(key))

    def _follow(self, keys: list[int]) -> None:
        """Find out what may come next in the texts `keys`."""
        waiting = deque(keys)
        while waiting:
            try:
                self._ask(self._running(), waiting)
            except LostError:
                self._lost(waiting.popleft())
            except UnusableError as error:
                self._unusable = error
                self._give_up(waiting.popleft(), "STRUCTURED_OUTPUT_FAILED", str(error))
            except NotStartedError as error:
                self._give_up(waiting.popleft(), "ENGINE_UNAVAILABLE", str(error))

    def _ask(self, process: Process, waiting: deque[int]) -> None:
        """Ask for the first of `waiting`, or several; who has an answer waits no more."""
        # Those that are known are short messages; another may fill the socket.
        known = [
            self._message(key) for key in itertools.takewhile(self._known.__contains__, waiting)
        ]
        process.ask(
            known or [self._message(waiting[0])],
            lambda answer: self._answered(waiting.popleft(), answer),
        )

    def _running(self) -> Process:
        if self._unusable:
            raise self._unusable
        if self._process and self._process.has_ended:  # for none of our messages
            self._drop()
        if self._process is None:
            self._process = Process(self._setup)
        return self._process

    def _message(self, key: int) -> ToWorker:
        text = self._texts[key]
        if key in self._known:
            return Advance(key, text.tokens[-1])
        return Begin(key, text.form, text.tokens)

    def _answered(self, key: int, answer: Allowed | Broken) -> None:
        if isinstance(answer, Allowed):
            self._known.add(key)
            self._tell(Next(key, answer.bits, seconds=answer.seconds))
            return
        self._known.discard(key)
        self._give_up(key, self._blame(key), answer.why)

    def _lost(self, key: int) -> None:
        assert self._process is not None
        why = self._process.why_lost()
        self._drop()
        text, said = self._texts[key], f"it takes more {why} than a form may"
        _log.warning("a text of %s was given up: %s", text.form, said)
        if not text.tokens:
            self._lost_forms[_digest(text.form)] = time.monotonic() + REST_SECONDS, said
            if len(self._lost_forms) > MAX_LOST:
                self._lost_forms.popitem(last=False)
        self._give_up(key, self._blame(key), said)

    def _blame(self, key: int) -> str:
        """Return the reason where nothing may follow: the form, or what it leads to."""
        return "STRUCTURED_OUTPUT_FAILED" if self._texts[key].tokens else "INVALID_FIELD"

    def _give_up(self, key: int, reason: str, why: str) -> None:
        del self._texts[key]
        self._tell(Next(key, None, reason, why))

    def _tell(self, found: Next) -> None:
        with self._changed:
            self._found.append(found)
            self._changed.notify()
        self._wake()


def _digest(form: Form) -> bytes:
    return hashlib.blake2b(encode(form), digest_size=16).digest()
