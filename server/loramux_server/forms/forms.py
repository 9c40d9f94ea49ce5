"""Which tokens may come next in texts that have a form, found out beside the steps.

A thread owns the texts (`texts.py`), does what it is told, and tells what it finds out.
"""

import logging
import queue
import threading
from collections.abc import Callable, Collection, Sequence
from functools import partial

from loramux_server.forms.findings import Ahead, Findings, Next
from loramux_server.forms.form import Form
from loramux_server.forms.messages import Setup
from loramux_server.forms.texts import Texts

_log = logging.getLogger(__name__)


class Forms:
    """Follows the texts of one engine; no process is started before the first of them."""

    def __init__(self, setup: Setup, wake: Callable[[], None]) -> None:
        """Prepare.

        Args:
            setup: What the process needs to know.
            wake: Called, from the thread, when there is something to `take`.
        """
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        """What the thread is told; None ends it."""
        self._findings = Findings(wake)
        self._thread: threading.Thread | None = None
        self._texts = Texts(setup, self._findings)
        """The thread's own."""

    @property
    def has_found(self) -> bool:
        """Whether there is something to `take`."""
        return bool(self._findings)

    def begin(self, key: int, form: Form, tenant: str = "") -> None:
        """Follow a text of `tenant` from its beginning."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="forms", daemon=True)
            self._thread.start()
        self._inbox.put(partial(self._texts.begin, key, form, tenant))

    def advance(self, chosen: Sequence[tuple[int, Sequence[int]]]) -> None:
        """Go on in each text of `chosen` with its tokens."""
        self._inbox.put(partial(self._texts.advance, chosen))

    def foresee(self, drafts: Sequence[tuple[int, Sequence[int]]]) -> None:
        """Find out what may come behind each token of what is drafted for texts."""
        self._inbox.put(partial(self._texts.foresee, drafts))

    def end(self, key: int) -> None:
        """Forget a text."""
        self._inbox.put(partial(self._texts.end, key))

    def take(
        self, wanted: Collection[int] = (), seconds: float = 0.0, ahead: Collection[int] = ()
    ) -> list[Next | Ahead]:
        """Return what was found out since the last time, when all is that is wanted, or time is up.

        Args:
            wanted: Texts of which it is wanted what may come next.
            seconds: How long to wait.
            ahead: Those of which it is wanted what may come behind their draft.
        """
        return self._findings.take(wanted, seconds, ahead)

    def close(self) -> None:
        """End thread and process."""
        if self._thread:
            self._inbox.put(None)
            self._thread.join()

    def _work(self) -> None:
        is_open = True
        while is_open:
            try:
                is_open = self._heed()
                if is_open:
                    self._texts.work()
            except Exception:
                _log.exception("forms cannot be followed")
                self._texts.give_up_all()
        self._texts.drop()

    def _heed(self) -> bool:
        """Do what the thread was told, and return whether it goes on; wait if there is no more."""
        while not self._texts.has_work or not self._inbox.empty():
            told = self._inbox.get()
            if told is None:
                return False
            told()
        return True
