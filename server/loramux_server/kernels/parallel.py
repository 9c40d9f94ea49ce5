"""Compiled loops on the threads that torch already has.

Two thread pools on the same cores spend their time waiting for each other. torch's OpenMP runtime
has an entry point, `GOMP_parallel`, that runs a C function once on each thread of its own team;
numba makes such functions. So there is one pool, and starting a loop costs a few microseconds.

Where torch came with another runtime the loops run on the calling thread.
"""

import ctypes
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import llvmlite.binding
import numba
import numpy as np
import torch
from numba import types
from numba.extending import intrinsic

thread_number = types.ExternalFunction("omp_get_thread_num", types.int32())
"""In a kernel: which thread of the team this is."""
num_threads = types.ExternalFunction("omp_get_num_threads", types.int32())
"""In a kernel: how many threads the team has."""


@intrinsic  # type: ignore[untyped-decorator]
def float32_at(typing_context: Any, address: Any) -> Any:  # noqa: ANN401
    """In a kernel: the memory at an integer address, as float32."""
    pointer = types.CPointer(types.float32)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ANN401
        return builder.inttoptr(arguments[0], context.get_value_type(pointer))

    return pointer(types.int64), generate


@intrinsic  # type: ignore[untyped-decorator]
def int32_at(typing_context: Any, address: Any) -> Any:  # noqa: ANN401
    """In a kernel: the memory at an integer address, as int32."""
    pointer = types.CPointer(types.int32)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ANN401
        return builder.inttoptr(arguments[0], context.get_value_type(pointer))

    return pointer(types.int64), generate


@intrinsic  # type: ignore[untyped-decorator]
def bits_as_float32(typing_context: Any, bits: Any) -> Any:  # noqa: ANN401
    """In a kernel: the float32 whose bits are those of an int32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ANN401
        return builder.bitcast(arguments[0], context.get_value_type(types.float32))

    return types.float32(types.int32), generate


class Kernel:
    """A compiled loop that takes one record of numbers and addresses."""

    def __init__(self, function: Callable[[Any], None], job: np.dtype[np.void]) -> None:
        """Compile `function`; the result is kept on disk beside the source, or in a user cache.

        Args:
            function: Takes a pointer to a record of type `job`; runs once on each thread.
            job: The record's type, aligned as in C.
        """
        runtime = _runtime()
        signature = types.void(types.CPointer(numba.from_dtype(job)))
        compiled = numba.cfunc(signature, nopython=True, cache=True, fastmath=True)(function)
        self._compiled = compiled  # keeps the machine code alive
        self._address = compiled.address
        self._parallel = runtime.GOMP_parallel if runtime else None
        self._serial = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(self._address)

    def run(self, job: np.ndarray[Any, Any]) -> None:
        """Run the loop on every thread of torch's team and wait for all of them."""
        if self._parallel is None:
            self._serial(job.ctypes.data)
        else:
            self._parallel(self._address, job.ctypes.data, torch.get_num_threads(), 0)


@cache
def _runtime() -> ctypes.CDLL | None:
    """Return torch's OpenMP runtime, and make its symbols known to compiled code."""
    folder = Path(torch.__file__).parent
    found = [*folder.glob("lib/libgomp*"), *folder.parent.glob("torch.libs/libgomp*")]
    if not found:
        one_thread = ctypes.CFUNCTYPE(ctypes.c_int)
        _ALONE.extend((one_thread(lambda: 0), one_thread(lambda: 1)))
        addresses = [ctypes.cast(function, ctypes.c_void_p).value for function in _ALONE]
        library = None
    else:
        library = ctypes.CDLL(str(found[0]))
        library.GOMP_parallel.argtypes = [
            ctypes.c_void_p,
            ctypes.c_void_p,
            ctypes.c_uint,
            ctypes.c_uint,
        ]
        library.GOMP_parallel.restype = None
        addresses = [
            ctypes.cast(function, ctypes.c_void_p).value
            for function in (library.omp_get_thread_num, library.omp_get_num_threads)
        ]
    for name, address in zip(("omp_get_thread_num", "omp_get_num_threads"), addresses, strict=True):
        llvmlite.binding.add_symbol(name, address)
    return library


_ALONE: list[Any] = []
"""Keeps the callbacks of the one-thread case alive."""


@numba.njit(inline="always")  # type: ignore[untyped-decorator]
def share_of(work: Any) -> Any:  # noqa: ANN401
    """In a kernel: where this thread's part of `work` begins and ends."""
    return (
        thread_number() * work // num_threads(),
        (thread_number() + 1) * work // num_threads(),
    )


@numba.njit(inline="always")  # type: ignore[untyped-decorator]
def first_unit(at: Any, work: Any, cost: Any, count: Any) -> Any:  # noqa: ANN401
    """In a kernel: the first of `count` units of `cost` each that begins at or after `at`.

    The first unit begins at `work`. Threads whose parts meet at `at` agree on where to stop and
    where to begin.
    """
    return min(count, max(0, (at - work + cost - 1) // max(1, cost)))
