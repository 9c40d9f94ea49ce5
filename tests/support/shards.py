"""Shards of a model in threads of this process, which add up as processes do."""

import itertools
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import pytest
import torch

_Result = TypeVar("_Result")


class Sums:
    """Adds up what each thread brings; only one of them runs at a time."""

    def __init__(self, count: int) -> None:
        self.turn = threading.Lock()
        self._everyone = threading.Barrier(count, timeout=60)
        self._brought: dict[int, list[torch.Tensor]] = defaultdict(list)
        self._thread = threading.local()

    def all_reduce(self, x: torch.Tensor) -> None:
        """Do what `torch.distributed.all_reduce` does."""
        assert x.is_contiguous()
        if not hasattr(self._thread, "numbers"):
            self._thread.numbers = itertools.count()
        brought = self._brought[next(self._thread.numbers)]
        brought.append(x.clone())
        self.turn.release()
        try:
            self._everyone.wait()
        finally:
            self.turn.acquire()
        x.copy_(torch.stack(brought).sum(0))


def side_by_side(tasks: Iterable[Callable[[], _Result]], sums: Sums) -> list[_Result]:
    """Run `tasks` as if each had a process of its own, and return what they return."""

    def run(task: Callable[[], _Result]) -> _Result:
        with sums.turn:
            return task()

    tasks = list(tasks)
    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(len(tasks)) as threads:
        patch.setattr(torch.distributed, "all_reduce", sums.all_reduce)
        return list(threads.map(run, tasks))
