"""Runs compiled loops on torch's own threads.

Two thread pools on the same cores would wait for each other. `GOMP_parallel` of torch's OpenMP
runtime runs a C function once on each thread of its team, and numba compiles such functions. So
there is one pool, and starting a loop costs a few microseconds.

If torch was built with another runtime, the loops run on the calling thread.
"""

import ctypes
import fcntl
import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import llvmlite.binding
import numba
import numpy as np
import torch
from numba import types
from numba.extending import intrinsic
from platformdirs import user_cache_path

FASTMATH = {"reassoc", "contract", "nsz", "arcp", "afn"}
"""Sums may be reordered, but NaN and infinity are kept (no nnan, ninf): the sampler checks them."""

thread_number = types.ExternalFunction("omp_get_thread_num", types.int32())
"""In a kernel: index of this thread in the team."""
num_threads = types.ExternalFunction("omp_get_num_threads", types.int32())
"""In a kernel: number of threads in the team."""
wait_for_all = types.ExternalFunction("GOMP_barrier", types.void())
"""In a kernel: a barrier for all threads of the team."""


def _numbers_at(kind: Any) -> Any:
    """Return an intrinsic that casts an integer address to a pointer to `kind`."""

    @intrinsic  # type: ignore[untyped-decorator]
    def numbers_at(typing_context: Any, address: Any) -> Any:
        pointer = types.CPointer(kind)

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.inttoptr(arguments[0], context.get_value_type(pointer))

        return pointer(types.int64), generate

    return numbers_at


float32_at = _numbers_at(types.float32)
"""In a kernel: an integer address as a float32 pointer."""
int32_at = _numbers_at(types.int32)
"""In a kernel: an integer address as an int32 pointer."""
int64_at = _numbers_at(types.int64)
"""In a kernel: an integer address as an int64 pointer."""


@intrinsic  # type: ignore[untyped-decorator]
def bits_as_float32(typing_context: Any, bits: Any) -> Any:
    """In a kernel: bit-cast an int32 to float32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], context.get_value_type(types.float32))

    return types.float32(types.int32), generate


class Kernel:
    """A compiled loop that takes one record of numbers and addresses, its job."""

    def __init__(self, function: Callable[[Any], None], job: np.ndarray[Any, Any]) -> None:
        """Compile `function`; the result is cached on disk beside the source, or in a user cache.

        Args:
            function: Takes a pointer to the job; runs once on each thread.
            job: One record in C layout. The caller fills it in before each run.
        """
        runtime = _runtime()
        self._alive = job
        self._address = compiled_address(function, job.dtype)
        self._job = job.ctypes.data
        self._parallel = runtime.GOMP_parallel if runtime else None
        self._serial = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(self._address)

    def run(self, work: int) -> None:
        """Run the loop on every thread of torch's team, or on this one if there is little work.

        Args:
            work: Approximate number of elements that the loop processes.
        """
        if self._parallel is None or work < _LITTLE:
            self._serial(self._job)
        else:
            self._parallel(self._address, self._job, torch.get_num_threads(), 0)


def without_team() -> None:
    """Make torch operations of the calling thread single-threaded.

    Each thread that uses OpenMP gets a permanent team of its own. Once the teams have more threads
    than there are cores, OpenMP stops busy-waiting: every loop then begins by waking its threads,
    and a step takes two to three times as long.
    """
    torch.get_num_threads()  # torch sets the number itself on the first use in a thread
    if runtime := _runtime():
        runtime.omp_set_num_threads(1)


_LITTLE = 8192
"""With fewer elements than this, the calling thread runs the whole loop."""


def compiled_address(function: Callable[[Any], None], job: np.dtype[Any]) -> int:
    """Return the address of the compiled `function`, whose argument points to a `job`."""
    return int(_compile(function, job).address)


@cache
def _compile(function: Callable[[Any], None], job: np.dtype[Any]) -> Any:
    # numba's cache detects changes in the function's own file only, but kernels share other files.
    function.__qualname__ += f"-{_version()}"
    signature = types.void(types.CPointer(numba.from_dtype(job)))
    with _alone():
        return numba.cfunc(signature, nopython=True, cache=True, fastmath=FASTMATH)(function)


@contextmanager
def _alone() -> Iterator[None]:
    """Hold a lock against compilation in other processes, if a lock file can be created.

    If two processes compile one function for different types at once, numba's cache may store both
    results under one file name, and a later process may load the wrong one.
    """
    try:
        path = user_cache_path("loramux", ensure_exists=True) / "compiling.lock"
        file = path.open("a")
    except OSError:
        yield
        return
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@cache
def _version() -> str:
    """Return a digest of the source of all CPU kernels."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


@cache
def _runtime() -> ctypes.CDLL | None:
    """Return torch's OpenMP runtime (None if it is not libgomp); register its symbols in LLVM."""
    folder = Path(torch.__file__).parent
    found = [*folder.glob("lib/libgomp*"), *folder.parent.glob("torch.libs/libgomp*")]
    if not found:
        one_thread, nothing = ctypes.CFUNCTYPE(ctypes.c_int), ctypes.CFUNCTYPE(None)
        _ALONE.extend((one_thread(lambda: 0), one_thread(lambda: 1), nothing(lambda: None)))
        functions = _ALONE
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
        functions = [getattr(library, name) for name in _SYMBOLS]
    for name, function in zip(_SYMBOLS, functions, strict=True):
        llvmlite.binding.add_symbol(name, ctypes.cast(function, ctypes.c_void_p).value)
    return library


_SYMBOLS = ("omp_get_thread_num", "omp_get_num_threads", "GOMP_barrier")


_ALONE: list[Any] = []
"""Keeps the single-thread fallback's callbacks alive."""


@numba.njit(inline="always")  # type: ignore[untyped-decorator]
def share_of(work: Any) -> Any:
    """In a kernel: begin and end of this thread's share of `work`."""
    return (
        thread_number() * work // num_threads(),
        (thread_number() + 1) * work // num_threads(),
    )


@numba.njit(inline="always")  # type: ignore[untyped-decorator]
def first_unit(at: Any, work: Any, cost: Any, count: Any) -> Any:
    """In a kernel: the first of `count` units of `cost` each that begins at or after `at`.

    Unit 0 begins at `work`. Two threads whose shares meet at `at` get the same unit as their end
    and begin.
    """
    return min(count, max(0, (at - work + cost - 1) // max(1, cost)))
