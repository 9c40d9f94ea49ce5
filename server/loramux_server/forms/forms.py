"""Token masks for constrained texts, computed beside the steps.

A thread owns the texts (`texts.py`), carries out the engine's commands and reports the results.
"""

import logging
import queue
import threading
from collections.abc import Callable, Collection, Sequence
from functools import partial

from loramux_server.forms.form import Form
from loramux_server.forms.messages import Setup
from loramux_server.forms.results import DraftMasks, Next, Results
from loramux_server.forms.texts import Texts

_log = logging.getLogger(__name__)


class Forms:
    """Tracks the constrained texts of one engine; the process starts with the first text."""

    def __init__(self, setup: Setup, wake: Callable[[], None]) -> None:
        """Prepare; start neither thread nor process yet.

        Args:
            setup: What the process needs to know.
            wake: Called from the thread when there is something to `take`.
        """
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        """Commands for the thread; None stops it."""
        self._results = Results(wake)
        self._thread: threading.Thread | None = None
        self._texts = Texts(setup, self._results)
        """Owned by the thread."""

    @property
    def has_found(self) -> bool:
        """Whether there are results to `take`."""
        return bool(self._results)

    def begin(self, key: int, form: Form, tenant: str = "") -> None:
        """Track a new text of `tenant`."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="forms", daemon=True)
            self._thread.start()
        self._inbox.put(partial(self._texts.begin, key, form, tenant))

    def advance(self, chosen: Sequence[tuple[int, Sequence[int]]]) -> None:
        """Append the chosen tokens to each text, and request what may come next."""
        self._inbox.put(partial(self._texts.advance, chosen))

    def mask_drafts(self, drafts: Sequence[tuple[int, Sequence[int]]]) -> None:
        """Request what may follow each token of the drafts, given as (key, tokens)."""
        self._inbox.put(partial(self._texts.mask_drafts, drafts))

    def end(self, key: int) -> None:
        """Stop tracking a text."""
        self._inbox.put(partial(self._texts.end, key))

    def take(
        self, wanted: Collection[int] = (), seconds: float = 0.0, drafted: Collection[int] = ()
    ) -> list[Next | DraftMasks]:
        """Return the results since the last call, once all that is awaited is there or time is up.

        Args:
            wanted: Texts whose next mask is awaited.
            seconds: How long to wait.
            drafted: Texts whose masks for the draft are awaited.
        """
        return self._results.take(wanted, seconds, drafted)

    def close(self) -> None:
        """Stop the thread and the process."""
        if self._thread:
            self._inbox.put(None)
            self._thread.join()

    def _work(self) -> None:
        is_open = True
        while is_open:
            try:
                is_open = self._run_commands()
                if is_open:
                    self._texts.work()
            except Exception:
                _log.exception("structured output failed")
                self._texts.give_up_all()
        self._texts.drop()

    def _run_commands(self) -> bool:
        """Run the queued commands, waiting while idle; return False once told to stop."""
        while not self._texts.has_work or not self._inbox.empty():
            command = self._inbox.get()
            if command is None:
                return False
            command()
        return True
