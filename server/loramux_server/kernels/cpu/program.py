"""A sequence of compiled loops that one team of threads runs without Python in between.

Source of the idea: CUDA graphs, which do the same on a GPU.
"""

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from loramux_server.kernels.cpu.parallel import (
    Kernel,
    compiled_address,
    int64_at,
    thread_number,
    wait_for_all,
)

_PROGRAM_JOB = np.dtype([(name, np.int64) for name in ("operations", "first", "last")], align=True)
_ALWAYS = 1 << 62
"""Work estimate that always uses every thread."""


@intrinsic  # type: ignore[untyped-decorator]
def _call(typing_context: Any, function: Any, job: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        byte = ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [byte]).as_pointer()
        function, job = arguments
        builder.call(builder.inttoptr(function, kind), [builder.inttoptr(job, byte)])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


def _run(pointer: Any) -> None:
    job = numba.carray(pointer, 1)[0]
    operations = int64_at(job.operations)
    is_odd = thread_number() % 2
    i = job.first
    while i < job.last:
        pair = 1 if operations[4 * i + 3] and i + 1 < job.last else 0
        if pair and is_odd:
            _call(operations[4 * i + 4], operations[4 * i + 5])
        _call(operations[4 * i], operations[4 * i + 1])
        if pair and not is_odd:
            _call(operations[4 * i + 4], operations[4 * i + 5])
        i += pair
        if operations[4 * i + 2]:
            wait_for_all()
        i += 1


class Program:
    """Loops and their jobs, in the order in which they run."""

    def __init__(self) -> None:
        self.names: list[str] = []
        """Function name of each loop."""
        self._operations: list[tuple[int, int, int, int]] = []
        self._alive: list[Any] = []
        self._job = np.zeros(1, _PROGRAM_JOB)
        self._kernel = Kernel(_run, self._job)

    def __len__(self) -> int:
        return len(self._operations)

    def add(
        self, function: Callable[[Any], None], jobs: np.ndarray[Any, Any], index: int = 0, *,
        waits: bool = True, swaps: bool = False,
    ) -> None:  # fmt: skip
        """Append a loop.

        Args:
            function: As a `Kernel` takes it.
            jobs: Job records; the caller owns them and fills them in before each run.
            index: Index of this loop's record.
            waits: Whether a barrier follows. None is needed if the next loop reads nothing that
                another thread writes in this one.
            swaps: Whether every second thread runs the next loop before this one; they must be
                independent. It overlaps a memory-bound loop with a compute-bound one.
        """
        self._alive.append(jobs)
        self.names.append(function.__name__)
        address = jobs.ctypes.data + index * jobs.itemsize
        self._operations.append(
            (compiled_address(function, jobs.dtype), address, int(waits), int(swaps))
        )

    def close(self) -> None:
        """Finish the program; no loop may be added after this."""
        operations = np.array(self._operations, np.int64)
        self._alive.append(operations)
        self._job[0]["operations"] = operations.ctypes.data

    def run(self, first: int = 0, last: int | None = None) -> None:
        """Run loops `first` to `last`, exclusive; all by default."""
        self._job[0]["first"] = first
        self._job[0]["last"] = len(self) if last is None else last
        self._kernel.run(_ALWAYS)
