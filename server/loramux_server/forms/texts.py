"""Constrained texts and the process that tracks them; owned by the thread of `forms.py`.

The process (`process.py`) serves texts in fair turns (`text_queues.py`). If it ends, a new process
takes over its texts, each when it is next asked about. The text being worked on is given up if it
alone exceeded a limit. Drafts are looked at only while no text waits for its next mask.
"""

import itertools
import logging
import time
from collections import deque
from collections.abc import Sequence

from loramux_server.confinement.child import ExitCause
from loramux_server.forms.form import Form
from loramux_server.forms.form_blocklist import FormBlocklist
from loramux_server.forms.messages import (
    Advance,
    Allowed,
    Begin,
    Broken,
    End,
    MaskDraft,
    Setup,
    ToWorker,
)
from loramux_server.forms.process import LostError, NotStartedError, Process, UnusableError
from loramux_server.forms.results import DraftMasks, Next, Results
from loramux_server.forms.text import Text
from loramux_server.forms.text_queues import QueueKey, TextQueues

_log = logging.getLogger(__name__)

MAX_UNBEGUN = 16
"""Texts without any token that the process keeps; further ones may wait for long, so it forgets
them."""


class Texts:
    """Computes what may come next in each text."""

    def __init__(self, setup: Setup, results: Results) -> None:
        """Start without texts or a process.

        Args:
            setup: What the process needs to know.
            results: Receives the results.
        """
        self._setup = setup
        self._results = results
        self._queues = TextQueues()
        self._drafts: dict[int, Sequence[int]] = {}
        """Text key -> draft that waits to be looked at."""
        self._process: Process | None = None
        self._has_answered = False
        """Whether the current process has ever answered."""
        self._texts: dict[int, Text] = {}
        self._known: set[int] = set()
        """Keys of texts that the process tracks."""
        self._unusable: UnusableError | None = None
        self._blocklist = FormBlocklist()

    @property
    def has_work(self) -> bool:
        """Whether a text waits for its turn, or a draft to be looked at."""
        return bool(self._queues or self._drafts)

    def begin(self, key: int, form: Form, tenant: str) -> None:
        """Track a new text of `tenant`."""
        self._texts[key] = Text(form, tenant)
        self._wait(key)

    def advance(self, chosen: Sequence[tuple[int, Sequence[int]]]) -> None:
        """Append the chosen tokens to each text, and queue it for its next mask."""
        for key, tokens in chosen:
            self._drafts.pop(key, None)
            if key in self._texts:  # it may have been given up
                self._texts[key].tokens += tokens
                self._wait(key)

    def mask_drafts(self, drafts: Sequence[tuple[int, Sequence[int]]]) -> None:
        """Queue drafts, given as (key, tokens)."""
        self._drafts.update(drafts)

    def end(self, key: int) -> None:
        """Stop tracking a text."""
        self._texts.pop(key, None)
        self._drafts.pop(key, None)
        self._forget(key)

    def work(self) -> None:
        """Serve one turn, or one draft if no text waits."""
        if self._queues:
            self._take_turn()
        else:
            self._mask_oldest_draft()

    def give_up_all(self) -> None:
        """Fail all texts after an internal error, so that none waits for ever."""
        self.drop()
        for key in list(self._texts):
            self._give_up(key, "INTERNAL", "an internal error")

    def drop(self) -> None:
        """Stop the process; its texts continue in the next one."""
        if self._process:
            self._process.close()
            self._process = None
        self._known.clear()
        self._has_answered = False

    def _take_turn(self) -> None:
        queue, keys = self._queues.take()
        begin = time.perf_counter()
        # Texts may have been ended or given up since they were queued.
        self._follow([key for key in keys if key in self._texts])
        self._queues.charge(queue, time.perf_counter() - begin)

    def _mask_oldest_draft(self) -> None:
        """Compute what may follow each token of the draft that has waited longest."""
        key = next(iter(self._drafts))
        draft = self._drafts.pop(key)
        if key not in self._texts:  # it may have been given up
            return
        text = self._texts[key]
        masks: Sequence[bytes] = ()
        if self._process and key in self._known and text.supports_drafts:
            try:
                answer = self._process.mask_draft(MaskDraft(key, list(draft)))
                text.draft_answered(answer)
                masks = answer.bits or ()
            except LostError:
                _log.warning("disabled draft tokens for a text with %s", text.form)
                text.may_draft = False
                self.drop()
        self._results.add(DraftMasks(key, masks))

    def _wait(self, key: int) -> None:
        text = self._texts[key]
        self._queues.add(QueueKey(text.pace, text.tenant), key)

    def _forget(self, key: int) -> None:
        """Make the process stop tracking a text, if it does."""
        if self._process and key in self._known:
            self._known.remove(key)
            self._process.notify(End(key))

    def _is_refused(self, key: int) -> bool:
        """Give up a text that is likely to cost the process; return whether it was given up."""
        if key in self._known:
            return False
        text = self._texts[key]
        if not text.tokens and (why := self._blocklist.reason(text.form)):
            self._give_up(key, "INVALID_FIELD", why)
            return True
        if text.used > self._setup.cpu_seconds:
            # Replaying it would take longer than an answer may.
            self._give_up(key, "STRUCTURED_OUTPUT_FAILED", _describe(ExitCause.TIME))
            return True
        return False

    def _follow(self, keys: list[int]) -> None:
        """Compute what may come next in the texts `keys`."""
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
        """Ask about the first of `waiting`, or several; remove each once it is answered."""
        # Advances are short; a Begin may fill the socket buffer, so it is sent alone.
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
        if self._process and self._process.has_ended:  # not because of a message of ours
            self.drop()
        if self._process is None:
            self._process = Process(self._setup)
        return self._process

    def _message(self, key: int) -> ToWorker:
        text = self._texts[key]
        if key in self._known:
            return Advance(key, text.tokens[text.num_sent :])
        return Begin(key, text.form, text.tokens)

    def _answered(self, key: int, answer: Allowed | Broken) -> None:
        self._has_answered = True
        if isinstance(answer, Broken):
            self._known.discard(key)
            self._give_up(key, self._failure_reason(key), answer.why)
            return
        text = self._texts[key]
        text.answered(answer, counts=key in self._known or not text.tokens)
        self._known.add(key)
        if text.used > self._setup.text_seconds:
            self._forget(key)
            self._give_up(key, self._failure_reason(key), _describe(ExitCause.TIME))
            return
        if not text.tokens and self._num_unbegun() > MAX_UNBEGUN:
            self._forget(key)
        found = Next(
            key, answer.bits, seconds=answer.seconds, forced=answer.forced,
            supports_drafts=key in self._known and text.supports_drafts,
        )  # fmt: skip
        self._results.add(found)

    def _num_unbegun(self) -> int:
        return sum(not self._texts[key].tokens for key in self._known)

    def _lost(self, waiting: deque[int]) -> None:
        """Stop the process; give up the first of `waiting` unless others may be the cause."""
        assert self._process is not None
        why, was_alone = self._process.why_lost(), not self._has_answered
        self.drop()
        if why is ExitCause.MEMORY and not was_alone:
            return  # other texts may have used the memory: retry this one alone
        key = waiting.popleft()
        text, message = self._texts[key], _describe(why)
        _log.warning("stopped a text with %s: %s", text.form, message)
        if not text.tokens:
            self._blocklist.add(text.form, message)
        self._give_up(key, self._failure_reason(key), message)

    def _failure_reason(self, key: int) -> str:
        """Return the error reason: the form itself, or what the text led to."""
        return "STRUCTURED_OUTPUT_FAILED" if self._texts[key].tokens else "INVALID_FIELD"

    def _give_up(self, key: int, reason: str, why: str) -> None:
        del self._texts[key]
        self._results.add(Next(key, None, reason, why))


def _describe(cause: ExitCause) -> str:
    return f"it {cause.describe('a constraint')}"
