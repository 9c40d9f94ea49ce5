"""Memory of the host that is prepared for copies to a device once, and used by many adapters.

To prepare it takes longer than to fill it: the system zeroes each page, then it is locked and shown
to the device. torch keeps what it has pinned as well, but in powers of two, so that 84 MB take 128,
gives none of it back, and has nothing to use again before something was freed: while the host's
memory of adapters is not full, each load would wait for memory of its own. Here a load finds what
another adapter had, or a room that was made ready after the load before it.
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
"""Sizes of rooms for each doubling: an eighth is left unused at most."""
_SMALLEST = 64 << 10


class Memory(Protocol):
    """Where rooms come from."""

    def make(self, num_bytes: int) -> Bytes:
        """Return memory that is prepared.

        Raises:
            MemoryError: There is none left.
        """

    def free(self, room: Bytes) -> None:
        """Give back what was made; nobody looks at it any more. It raises nothing."""


class Rooms:
    """Rooms of one kind of memory. Threads may share it.

    A room is in use until no tensor or array is left that lies in it. So whoever copies from one
    keeps its tensor until the copy has ended.
    """

    def __init__(self, memory: Memory, capacity: int, spares: Executor | None = None) -> None:
        """Have no room yet.

        Args:
            memory: Where rooms come from.
            capacity: Bytes of all rooms, beyond which none is kept that is not in use.
            spares: Makes rooms for loads that are yet to come; None makes none.
        """
        self._memory = memory
        self._capacity = capacity
        self._spares = spares
        self._idle: list[Bytes] = []
        """Those first that were in use longest ago."""
        self._num_bytes = 0
        """Of all rooms, and of those that are being made."""
        self._returned: deque[Bytes] = deque()
        """Rooms that nobody uses any more. What ends a use may run anywhere, so it waits for no
        lock."""
        self._lock = threading.Lock()

    @property
    def num_bytes(self) -> int:
        """Bytes of all rooms."""
        return self._num_bytes

    def take(self, num_bytes: int) -> torch.Tensor:
        """Return memory of `num_bytes`, [num_bytes] of uint8; what is in it is left as it was.

        Raises:
            MemoryError: There is none left.
        """
        if not num_bytes:
            return torch.empty(0, dtype=torch.uint8)
        size = size_of_room(num_bytes)
        room = self._find(size)
        if room is None:
            room = self._make(size)
        # Tensors keep this view of it, and it alone: arrays on tensors keep the tensors.
        held = room[:num_bytes]
        weakref.finalize(held, self._returned.append, room).atexit = False
        if self._spares is not None:
            with suppress(RuntimeError):  # it has ended, as all does
                self._spares.submit(self._make_spare, size)
        return torch.from_numpy(held)

    def _find(self, size: int) -> Bytes | None:
        """Return an idle room of `size`, or None, and count the one that is made then.

        What there is no room for beside it goes.
        """
        with self._lock:
            self._take_back()
            room = self._idle_of(size)
            if room is None:
                self._num_bytes += size
            surplus: list[Bytes] = []
            while self._idle and self._num_bytes > self._capacity:
                surplus.append(self._idle.pop(0))
                self._num_bytes -= len(surplus[-1])
        for other in surplus:
            self._memory.free(other)
        return room

    def _idle_of(self, size: int) -> Bytes | None:
        """Take the room of `size` that was in use last; only who holds the lock may call this."""
        for index in reversed(range(len(self._idle))):
            if len(self._idle[index]) == size:
                return self._idle.pop(index)
        return None

    def _make(self, size: int) -> Bytes:
        """Make a room whose bytes are counted already."""
        try:
            return self._memory.make(size)
        except BaseException:
            with self._lock:
                self._num_bytes -= size
            raise

    def _make_spare(self, size: int) -> None:
        """Have a room ready for the next load, if it was like the one before it."""
        with self._lock:
            self._take_back()
            is_there = any(len(room) == size for room in self._idle)
            if is_there or self._num_bytes + size > self._capacity:
                return
            self._num_bytes += size
        try:
            room = self._make(size)
        except MemoryError:
            return  # a load that needs it will say so
        except Exception:
            _log.exception("cannot prepare memory for the next adapter")
            return
        with self._lock:
            self._idle.append(room)

    def _take_back(self) -> None:
        """Note which rooms are in use no more; only who holds the lock may call this."""
        while self._returned:
            self._idle.append(self._returned.popleft())


def size_of_room(num_bytes: int) -> int:
    """Return the bytes of a room for `num_bytes`."""
    step = max(_SMALLEST, (1 << (num_bytes.bit_length() - 1)) // _STEPS)
    return -(-num_bytes // step) * step


class PinnedMemory:
    """Memory that a GPU copies from at full speed, beside what the host does.

    It is taken in large pages where the system has them, and touched before it is registered: the
    driver lets nobody else call it meanwhile. It is registered for as long as there is an array of
    it, and not a moment longer: other memory may come to lie at its addresses.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._registered: dict[int, weakref.finalize[[int, mmap.mmap], Bytes]] = {}
        """Address -> what ends that."""
        self._lost: list[mmap.mmap] = []
        """What the driver did not let go of: it stays where it is."""
        self._has_warned = False

    def make(self, num_bytes: int) -> Bytes:
        """Return memory that is pinned, or, if the driver will have no more of that, is not."""
        try:
            pages = mmap.mmap(-1, num_bytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except OSError as error:
            raise MemoryError(str(error)) from error
        for name in ("MADV_HUGEPAGE", "MADV_DONTFORK"):  # not every system knows them
            with suppress(OSError, AttributeError):
                pages.madvise(getattr(mmap, name))
        room = np.frombuffer(pages, np.uint8)
        room[:: mmap.PAGESIZE] = 0
        address = room.ctypes.data
        try:
            self._call("cudaHostRegister", address, num_bytes, 0)
        except torch.cuda.CudaError as error:
            self._warn(num_bytes, error)
            # It would be told again, to the next kernel that this thread starts.
            with suppress(RuntimeError):
                torch.zeros(1, device=self._device)
        else:
            ending = weakref.finalize(room, self._unregister, address, pages)
            ending.atexit = False
            self._registered[address] = ending
        return room

    def free(self, room: Bytes) -> None:
        """Give back what was made."""
        if ending := self._registered.get(room.ctypes.data):
            ending()

    def _unregister(self, address: int, pages: mmap.mmap) -> None:
        self._registered.pop(address, None)
        try:
            self._call("cudaHostUnregister", address)
        except Exception:  # it may run wherever the last array goes
            _log.exception("%d bytes for adapters stay pinned", len(pages))
            self._lost.append(pages)

    def _warn(self, num_bytes: int, error: Exception) -> None:
        if not self._has_warned:
            _log.warning("%d bytes for an adapter are not pinned: %s", num_bytes, error)
        self._has_warned = True

    def _call(self, name: str, *arguments: int) -> None:
        with torch.cuda.device(self._device):
            cudart = torch.cuda.cudart()  # type: ignore[no-untyped-call]
            code = int(getattr(cudart, name)(*arguments))
        if code:
            raise torch.cuda.CudaError(code)
