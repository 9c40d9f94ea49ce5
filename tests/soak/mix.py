"""What clients do to a server all day: answers, cancels, slow readers, uploads and mistakes."""

import itertools
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from types import TracebackType
from typing import Self

from loramux_server.wire.model_kind import ModelKind
from tests.soak.loop import Loop
from tests.soak.reader import Reader
from tests.soak.worker import TIMEOUT, Setting, Worker
from tests.support.server import RunningServer

NUM_NAMES = 8
"""Names of uploads that each worker takes turns with."""
CALLS_PER_CONNECTION = 50
MAX_SURPRISES = 20
"""So many are kept word by word."""
WEIGHTS = {
    "stream": 50, "mix": 5, "chat": 5, "show": 20, "tools": 3, "form": 5, "embed": 5, "read": 5,
    "score": 5, "search": 3, "infer": 5, "batch": 1, "routed": 2, "cancel": 10, "slow": 5,
    "upload": 5, "mistake": 10, "look": 8, "scrape": 2,
}  # fmt: skip
"""How often each happens."""
READS = {
    "label": 20, "pair": 20, "tag": 10, "find": 10, "embed": 15, "leave": 10, "upload": 5,
    "mistake": 5, "look": 8, "scrape": 2,
}  # fmt: skip
"""The same where the base is an encoder."""
WRITES = WEIGHTS.keys() - {"chat", "show", "tools", "embed", "read", "score"}
"""Those of `WEIGHTS` that there are where the base reads one text and writes another."""


class Mix:
    """Keeps `num_workers` clients busy as long as the block runs."""

    def __init__(
        self, server: RunningServer, setting: Setting, loop: Loop, *, num_workers: int = 8
    ) -> None:
        self._server = server
        self._setting = setting
        self._loop = loop
        self._is_over = threading.Event()
        self._toured = threading.Semaphore(0)
        self._lock = threading.Lock()
        self.done: Counter[str] = Counter()
        """Kind -> how often it was done."""
        self.num_surprises = 0
        self.surprises: list[str] = []
        """Whatever did not end as it had to."""
        self._threads = [
            threading.Thread(target=self._work, args=(number,)) for number in range(num_workers)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()

    @property
    def num_done(self) -> int:
        """Things done so far; most are one call, an upload is eight."""
        return self.done.total()

    def toured(self, seconds: float) -> bool:
        """Return whether every worker does everything once within `seconds`."""
        return all(self._toured.acquire(timeout=seconds) for _ in self._threads)

    def _work(self, number: int) -> None:
        choice = random.Random(number)
        names = itertools.cycle([f"soak-{number}-{i}" for i in range(NUM_NAMES)])
        plan = self._plan(choice)
        while not self._is_over.is_set():
            with self._server.client(timeout=TIMEOUT) as client:
                kind_of_worker = Reader if self._setting.kind is ModelKind.ENCODER else Worker
                worker = kind_of_worker(
                    self._server, client, self._setting, choice, names, self._loop
                )
                for kind, adapter in itertools.islice(plan, CALLS_PER_CONNECTION):
                    if self._is_over.is_set():
                        break
                    self._try(kind, partial(getattr(worker, kind), adapter))

    def _weights(self) -> dict[str, int]:
        """Return what there is to be done, and how often."""
        setting = self._setting
        if setting.kind is ModelKind.ENCODER:
            return READS
        needed = {
            "chat": setting.chats, "tools": setting.chats, "show": setting.shows,
            "read": setting.labels and setting.spans,
        }  # fmt: skip
        if setting.kind is ModelKind.SEQ2SEQ:
            needed = {kind: kind in WRITES for kind in WEIGHTS}
        return {kind: weight for kind, weight in WEIGHTS.items() if needed.get(kind, True)}

    def _plan(self, choice: random.Random) -> Iterator[tuple[str, str | None]]:
        """Yield everything with every adapter once, and from then on what comes."""
        weights = self._weights()
        kinds = list(weights)
        adapters = [None, *self._setting.adapters]
        # In the same order for all workers: what is done by all at once takes the most memory that
        # it ever will, and an allocator keeps that.
        yield from itertools.product(kinds, adapters)
        self._toured.release()
        while True:
            (kind,) = choice.choices(kinds, [*weights.values()])
            yield kind, choice.choice(adapters)

    def _try(self, kind: str, act: Callable[[], None]) -> None:
        surprise = ""
        try:
            act()
        except Exception as error:  # whatever it is, it is told at the end
            surprise = f"{kind}: {error!r}"
        with self._lock:
            self.done[kind] += 1
            if surprise:
                self.num_surprises += 1
                self.surprises = [*self.surprises, surprise][:MAX_SURPRISES]
