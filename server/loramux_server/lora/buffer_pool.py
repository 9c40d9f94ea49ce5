"""A pool of pinned host buffers for copies to a device, reused by many adapters.

Preparing a buffer takes longer than filling it: the system zeroes each page, then it is locked and
registered with the device. torch caches pinned memory, too, but rounds up to powers of two (84 MB
take 128), never returns it, and can only reuse what was freed: until the host tier is full, each
load would wait for new memory. Here a load gets the buffer of an evicted adapter, or a spare one
that was prepared after the previous load.
"""

import logging
import mmap
import threading
import weakref
from collections import deque
from concurrent.futures import Executor
from contextlib import suppress
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

_log = logging.getLogger(__name__)

Bytes = npt.NDArray[np.uint8]

_STEPS = 8
"""Buffer sizes per power of two: at most an eighth is unused."""
_SMALLEST = 64 << 10


class Memory(Protocol):
    """An allocator of buffers."""

    def make(self, num_bytes: int) -> Bytes:
        """Allocate and prepare a buffer.

        Raises:
            MemoryError: There is no memory left.
        """

    def free(self, buffer: Bytes) -> None:
        """Free a buffer that nobody uses any more; never raises."""


class BufferPool:
    """A thread-safe pool of buffers from one allocator.

    A buffer is in use as long as any tensor or array refers to its memory. So keep the tensor until
    a copy from it has ended.
    """

    def __init__(self, memory: Memory, capacity: int, spares: Executor | None = None) -> None:
        """Create an empty pool.

        Args:
            memory: The allocator.
            capacity: Total bytes above which idle buffers are freed.
            spares: Executor that prepares buffers for later loads; None: no spares.
        """
        self._memory = memory
        self._capacity = capacity
        self._spares = spares
        self._idle: list[Bytes] = []
        """Least recently used first."""
        self._num_bytes = 0
        """Total of all buffers, including those being made."""
        self._returned: deque[Bytes] = deque()
        """Buffers no longer in use. Finalizers append here without a lock: they may run anywhere,
        even in a thread that holds it."""
        self._lock = threading.Lock()

    @property
    def num_bytes(self) -> int:
        """Total bytes of all buffers."""
        return self._num_bytes

    def take(self, num_bytes: int) -> torch.Tensor:
        """Return an uninitialized buffer as a tensor, [num_bytes] of uint8.

        Raises:
            MemoryError: There is no memory left.
        """
        if not num_bytes:
            return torch.empty(0, dtype=torch.uint8)
        size = buffer_size(num_bytes)
        buffer = self._find(size)
        if buffer is None:
            buffer = self._make(size)
        # Tensors hold a reference to this view only; arrays made from tensors hold the tensors.
        held = buffer[:num_bytes]
        weakref.finalize(held, self._returned.append, buffer).atexit = False
        if self._spares is not None:
            with suppress(RuntimeError):  # the executor is shut down
                self._spares.submit(self._make_spare, size)
        return torch.from_numpy(held)

    def _find(self, size: int) -> Bytes | None:
        """Return an idle buffer of `size`; if None, count the one that the caller will make.

        Free idle buffers beyond the capacity.
        """
        with self._lock:
            self._take_back()
            buffer = self._idle_of(size)
            if buffer is None:
                self._num_bytes += size
            surplus: list[Bytes] = []
            while self._idle and self._num_bytes > self._capacity:
                surplus.append(self._idle.pop(0))
                self._num_bytes -= len(surplus[-1])
        for other in surplus:
            self._memory.free(other)
        return buffer

    def _idle_of(self, size: int) -> Bytes | None:
        """Take the most recently used idle buffer of `size`; the caller must hold the lock."""
        for index in reversed(range(len(self._idle))):
            if len(self._idle[index]) == size:
                return self._idle.pop(index)
        return None

    def _make(self, size: int) -> Bytes:
        """Allocate a buffer whose bytes are counted already."""
        try:
            return self._memory.make(size)
        except BaseException:
            with self._lock:
                self._num_bytes -= size
            raise

    def _make_spare(self, size: int) -> None:
        """Prepare a spare buffer for a next load of the same size, if there is none."""
        with self._lock:
            self._take_back()
            is_there = any(len(buffer) == size for buffer in self._idle)
            if is_there or self._num_bytes + size > self._capacity:
                return
            self._num_bytes += size
        try:
            buffer = self._make(size)
        except MemoryError:
            return  # a load that needs it will report the error
        except Exception:
            _log.exception("cannot prepare memory for the next adapter")
            return
        with self._lock:
            self._idle.append(buffer)

    def _take_back(self) -> None:
        """Move returned buffers to the idle list; the caller must hold the lock."""
        while self._returned:
            self._idle.append(self._returned.popleft())


def buffer_size(num_bytes: int) -> int:
    """Return the buffer size for `num_bytes`, in bytes."""
    step = max(_SMALLEST, (1 << (num_bytes.bit_length() - 1)) // _STEPS)
    return -(-num_bytes // step) * step


class PinnedMemory:
    """Allocates pinned memory, from which a GPU copies at full speed and asynchronously.

    It uses huge pages where available, and touches them before registration, which blocks all other
    driver calls. Memory is registered exactly as long as an array of it exists: later, other memory
    may have its addresses.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._registered: dict[int, weakref.finalize[[int, mmap.mmap], Bytes]] = {}
        """Address -> finalizer that unregisters it."""
        self._lost: list[mmap.mmap] = []
        """Memory that could not be unregistered: it must stay mapped."""
        self._has_warned = False

    def make(self, num_bytes: int) -> Bytes:
        """Return pinned memory, or pageable memory if the driver refuses to register more."""
        try:
            pages = mmap.mmap(-1, num_bytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except OSError as error:
            raise MemoryError(str(error)) from error
        for name in ("MADV_HUGEPAGE", "MADV_DONTFORK"):  # not available on every system
            with suppress(OSError, AttributeError):
                pages.madvise(getattr(mmap, name))
        buffer = np.frombuffer(pages, np.uint8)
        buffer[:: mmap.PAGESIZE] = 0
        address = buffer.ctypes.data
        try:
            self._call("cudaHostRegister", address, num_bytes, 0)
        except torch.cuda.CudaError as error:
            self._warn(num_bytes, error)
            # Clear the error: CUDA would report it again at this thread's next kernel launch.
            with suppress(RuntimeError):
                torch.zeros(1, device=self._device)
        else:
            ending = weakref.finalize(buffer, self._unregister, address, pages)
            ending.atexit = False
            self._registered[address] = ending
        return buffer

    def free(self, buffer: Bytes) -> None:
        """Unregister the memory; it is unmapped with its last array."""
        if ending := self._registered.get(buffer.ctypes.data):
            ending()

    def _unregister(self, address: int, pages: mmap.mmap) -> None:
        self._registered.pop(address, None)
        try:
            self._call("cudaHostUnregister", address)
        except Exception:  # a finalizer: it may run anywhere
            _log.exception("%d bytes for adapters stay pinned", len(pages))
            self._lost.append(pages)

    def _warn(self, num_bytes: int, error: Exception) -> None:
        if not self._has_warned:
            _log.warning("cannot pin %d bytes for an adapter: %s", num_bytes, error)
        self._has_warned = True

    def _call(self, name: str, *arguments: int) -> None:
        with torch.cuda.device(self._device):
            cudart = torch.cuda.cudart()  # type: ignore[no-untyped-call]
            code = int(getattr(cudart, name)(*arguments))
        if code:
            raise torch.cuda.CudaError(code)
