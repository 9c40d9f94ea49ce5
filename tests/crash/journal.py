"""What the store did in the course of a story, and what callers were told at each moment."""

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.crash.disk import Disk, Image, torn
from tests.crash.registry_model import RegistryModel
from tests.crash.seen import Op


@dataclass(frozen=True)
class Step:
    """An operation, with what a commit left in the catalog."""

    op: Op
    catalog: bytes | None
    allowed: tuple[RegistryModel, ...]
    """What may be found by who opens the store when this was done: what was acknowledged, or that
    with the change that is under way."""


class Journal:
    """Watches a story and keeps it."""

    def __init__(
        self, folder: Path, begin: Image | None = None, model: RegistryModel | None = None
    ) -> None:
        self._folder = folder
        self._begin = begin
        self._allowed: tuple[RegistryModel, ...] = (model or RegistryModel(),)
        self._lock = threading.Lock()
        self.steps: list[Step] = []

    def before(self, op: Op) -> None:
        pass

    def after(self, op: Op) -> None:
        if op.is_change:
            catalog = _dump(self._folder) if op.kind == "commit" else None
            with self._lock:
                self.steps.append(Step(op, catalog, self._allowed))

    @contextmanager
    def change(self, after: RegistryModel) -> Iterator[None]:
        """A call that leads to `after`: under way in the block, acknowledged behind it."""
        self._allowed = (self._allowed[0], after)
        yield
        self._allowed = (after,)
        # What is acknowledged holds from this very moment, before the next operation.
        with self._lock:
            self.steps.append(Step(Op("told"), None, self._allowed))

    def kills(self) -> Iterator[tuple[Image, tuple[RegistryModel, ...]]]:
        """Yield what a kill leaves after each operation and in the middle of each write."""
        yield Disk(self._begin).killed(), self._start
        for index, step in enumerate(self.steps):
            yield self._disk(index + 1).killed(), step.allowed
            for part in torn(step.op):
                disk = self._disk(index)
                disk.apply(part)
                yield disk.killed(), step.allowed

    def power_cuts(self, limit: int) -> Iterator[tuple[Image, tuple[RegistryModel, ...]]]:
        """Yield what a power cut may leave after each operation, `limit` possibilities each."""
        for index, step in enumerate(self.steps):
            for image in self._disk(index + 1).without_power(limit, seed=index):
                yield image, step.allowed

    @property
    def _start(self) -> tuple[RegistryModel, ...]:
        return self.steps[0].allowed[:1] if self.steps else self._allowed

    def _disk(self, num_steps: int) -> Disk:
        disk = Disk(self._begin)
        for step in self.steps[:num_steps]:
            disk.apply(step.op, step.catalog)
        return disk


def _dump(folder: Path) -> bytes:
    """Return the catalog as one file, with what its log holds."""
    with (
        closing(sqlite3.connect(folder / "catalog.sqlite")) as connection,
        closing(sqlite3.connect(":memory:")) as whole,
    ):
        connection.backup(whole)
        return whole.serialize()
