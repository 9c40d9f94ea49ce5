"""Texts that have a form, and the process that follows them: what the thread of forms owns.

The process (`process.py`) is asked about whoever's turn it is (`turns.py`). Where it ends, another
takes its texts up, each when it is next asked for. The one that it was at is given up if it alone
was too much. What may come behind a draft is found out while nobody waits to know what comes next.
"""

import itertools
import logging
import time
from collections import deque
from collections.abc import Sequence

from loramux_server.confinement.child import Offence
from loramux_server.forms.findings import Ahead, Findings, Next
from loramux_server.forms.form import Form
from loramux_server.forms.lost_forms import LostForms
from loramux_server.forms.messages import (
    Advance,
    Allowed,
    Begin,
    Broken,
    End,
    Foresee,
    Setup,
    ToWorker,
)
from loramux_server.forms.process import LostError, NotStartedError, Process, UnusableError
from loramux_server.forms.text import Text
from loramux_server.forms.turns import Line, LineTurns

_log = logging.getLogger(__name__)

MAX_UNBEGUN = 16
"""Texts without a token that the process keeps; the others of them may wait for long."""


class Texts:
    """Finds out what may come next in them."""

    def __init__(self, setup: Setup, findings: Findings) -> None:
        """Begin without texts or a process.

        Args:
            setup: What the process needs to know.
            findings: Told what is found out.
        """
        self._setup = setup
        self._findings = findings
        self._turns = LineTurns()
        self._drafts: dict[int, Sequence[int]] = {}
        """Text -> the draft behind which it is wanted what may come."""
        self._process: Process | None = None
        self._has_answered = False
        """Whether the process did, ever."""
        self._texts: dict[int, Text] = {}
        self._known: set[int] = set()
        """Texts that the process follows."""
        self._unusable: UnusableError | None = None
        self._lost_forms = LostForms()

    @property
    def has_work(self) -> bool:
        """Whether there is anything to find out."""
        return bool(self._turns or self._drafts)

    def begin(self, key: int, form: Form, tenant: str) -> None:
        """Follow a text of `tenant` from its beginning."""
        self._texts[key] = Text(form, tenant)
        self._wait(key)

    def advance(self, chosen: Sequence[tuple[int, Sequence[int]]]) -> None:
        """Go on in each text of `chosen` with its tokens."""
        for key, tokens in chosen:
            self._drafts.pop(key, None)
            if key in self._texts:  # it may have been given up
                self._texts[key].tokens += tokens
                self._wait(key)

    def foresee(self, drafts: Sequence[tuple[int, Sequence[int]]]) -> None:
        """Find out what may come behind each token of what is drafted for texts."""
        self._drafts.update(drafts)

    def end(self, key: int) -> None:
        """Forget a text."""
        self._texts.pop(key, None)
        self._drafts.pop(key, None)
        self._forget(key)

    def work(self) -> None:
        """Find out what comes next in some texts, or behind a draft where nobody waits for that."""
        if self._turns:
            self._take_turn()
        else:
            self._look_ahead()

    def give_up_all(self) -> None:
        """Give up all texts, after a defect: nobody may wait for an answer that never comes."""
        self.drop()
        for key in list(self._texts):
            self._give_up(key, "INTERNAL", "an internal error")

    def drop(self) -> None:
        """End the process; texts that it follows are another's to take up."""
        if self._process:
            self._process.close()
            self._process = None
        self._known.clear()
        self._has_answered = False

    def _take_turn(self) -> None:
        line, keys = self._turns.take()
        begin = time.perf_counter()
        # One that was ended or given up meanwhile is none any more.
        self._follow([key for key in keys if key in self._texts])
        self._turns.charge(line, time.perf_counter() - begin)

    def _look_ahead(self) -> None:
        """Find out what may come behind the draft that has waited longest."""
        key = next(iter(self._drafts))
        draft = self._drafts.pop(key)
        if key not in self._texts:  # it may have been given up
            return
        text = self._texts[key]
        behind: Sequence[bytes] = ()
        if self._process and key in self._known and text.foresees:
            try:
                answer = self._process.foresee(Foresee(key, list(draft)))
                text.foreseen(answer)
                behind = answer.bits or ()
            except LostError:
                _log.warning("no more draft tokens for a text with %s", text.form)
                text.may_draft = False
                self.drop()
        self._findings.tell(Ahead(key, behind))

    def _wait(self, key: int) -> None:
        text = self._texts[key]
        self._turns.add(Line(text.pace, text.tenant), key)

    def _forget(self, key: int) -> None:
        """Let the process forget a text, if it knows that."""
        if self._process and key in self._known:
            self._known.remove(key)
            self._process.tell(End(key))

    def _is_refused(self, key: int) -> bool:
        """Give up a text that would cost the process, and return whether it would."""
        if key in self._known:
            return False
        text = self._texts[key]
        if not text.tokens and (why := self._lost_forms.why_not(text.form)):
            self._give_up(key, "INVALID_FIELD", why)
            return True
        if text.used > self._setup.cpu_seconds:
            # To follow it anew takes longer than an answer may.
            self._give_up(key, "STRUCTURED_OUTPUT_FAILED", _said(Offence.TIME))
            return True
        return False

    def _follow(self, keys: list[int]) -> None:
        """Find out what may come next in the texts `keys`."""
        waiting = deque(keys)
        while waiting:
            if self._is_refused(waiting[0]):
                waiting.popleft()
                continue
            try:
                self._ask(self._running(), waiting)
            except LostError:
                self._lost(waiting)
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
            self.drop()
        if self._process is None:
            self._process = Process(self._setup)
        return self._process

    def _message(self, key: int) -> ToWorker:
        text = self._texts[key]
        if key in self._known:
            return Advance(key, text.tokens[text.num_told :])
        return Begin(key, text.form, text.tokens)

    def _answered(self, key: int, answer: Allowed | Broken) -> None:
        self._has_answered = True
        if isinstance(answer, Broken):
            self._known.discard(key)
            self._give_up(key, self._blame(key), answer.why)
            return
        text = self._texts[key]
        text.answered(answer, counts=key in self._known or not text.tokens)
        self._known.add(key)
        if text.used > self._setup.text_seconds:
            self._forget(key)
            self._give_up(key, self._blame(key), _said(Offence.TIME))
            return
        if not text.tokens and self._num_unbegun() > MAX_UNBEGUN:
            self._forget(key)
        found = Next(
            key, answer.bits, seconds=answer.seconds, forced=answer.forced,
            foresees=key in self._known and text.foresees,
        )  # fmt: skip
        self._findings.tell(found)

    def _num_unbegun(self) -> int:
        return sum(not self._texts[key].tokens for key in self._known)

    def _lost(self, waiting: deque[int]) -> None:
        """End the process; give up the first of `waiting` if nothing else can have been its end."""
        assert self._process is not None
        why, was_alone = self._process.why_lost(), not self._has_answered
        self.drop()
        if why is Offence.MEMORY and not was_alone:
            return  # it may be the memory of others, so it is tried again, alone
        key = waiting.popleft()
        text, said = self._texts[key], _said(why)
        _log.warning("a text of %s was given up: %s", text.form, said)
        if not text.tokens:
            self._lost_forms.note(text.form, said)
        self._give_up(key, self._blame(key), said)

    def _blame(self, key: int) -> str:
        """Return the reason where nothing may follow: the form, or what it leads to."""
        return "STRUCTURED_OUTPUT_FAILED" if self._texts[key].tokens else "INVALID_FIELD"

    def _give_up(self, key: int, reason: str, why: str) -> None:
        del self._texts[key]
        self._findings.tell(Next(key, None, reason, why))


def _said(offence: Offence) -> str:
    return f"it {offence.by('a form')}"
