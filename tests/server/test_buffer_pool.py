"""Rooms for adapters on the host: whose they are, when they are used again, how many there are."""

import gc
import mmap
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext, suppress
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from loramux_server.lora.buffer_pool import BufferPool, Bytes, PinnedMemory, buffer_size
from loramux_server.lora.extended_slab import ExtendedSlab
from loramux_server.lora.packed import LayerPlace, PackedAdapter, PackedLayer
from loramux_server.lora.slab import GroupShape
from loramux_server.wire.weight_format import WeightFormat
from tests.support.fake import HeldExecutor

UNIT = 256 << 10
CAPACITY = 4 * UNIT
SIZES = [1, 64 << 10, (64 << 10) + 1, UNIT, UNIT + 1, 3 * UNIT, 5 * UNIT]
"""Of which the last has no room beside others, nor alone."""


class CountedMemory:
    """Notes which rooms there are."""

    def __init__(self) -> None:
        self.buffers: dict[int, Bytes] = {}
        self.num_made = 0
        self.is_full = False

    def make(self, num_bytes: int) -> Bytes:
        if self.is_full:
            raise MemoryError
        buffer = np.zeros(num_bytes, np.uint8)
        self.buffers[id(buffer)] = buffer
        self.num_made += 1
        return buffer

    def free(self, buffer: Bytes) -> None:
        del self.buffers[id(buffer)]
        buffer.fill(0xFF)  # who still looks at it will know

    @property
    def num_bytes(self) -> int:
        return sum(len(buffer) for buffer in self.buffers.values())


class RoomsMachine(RuleBasedStateMachine):
    """Adapters that come, are looked at through tensors and arrays, and go, in any order."""

    @initialize()
    def begin(self) -> None:
        self.memory, self.spares = CountedMemory(), HeldExecutor()
        self.pool = BufferPool(self.memory, CAPACITY, self.spares)
        self.held: list[tuple[torch.Tensor | npt.NDArray[Any], int]] = []
        """What lies in a room, and the byte that it is full of."""
        self.num_taken = 0

    @rule(size=st.sampled_from(SIZES))
    def take(self, size: int) -> None:
        before = self.memory.num_made
        buffer = self.pool.take(size)
        assert (buffer.shape, buffer.dtype) == ((size,), torch.uint8)
        assert self.memory.num_made - before <= 1
        self.num_taken += 1
        buffer.fill_(self.num_taken % 251)
        self.held.append((buffer, self.num_taken % 251))
        # What nobody uses is not kept at the cost of the bound.
        used = sum(buffer_size(of.nbytes) for of, _ in self.held)
        assert self.pool.num_bytes <= max(CAPACITY, used)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def look_at_it_otherwise(self, data: st.DataObject) -> None:
        """What lies in a room keeps it, whatever it is made of."""
        index = data.draw(st.integers(0, len(self.held) - 1))
        seen, byte = self.held[index]
        if not isinstance(seen, torch.Tensor):
            self.held[index] = seen.view(np.uint8)[:], byte
        elif data.draw(st.booleans()):
            self.held[index] = seen.view(-1)[:], byte
        else:
            self.held[index] = seen.view(torch.int8).numpy().view(np.uint8), byte

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def let_go(self, data: st.DataObject) -> None:
        del self.held[data.draw(st.integers(0, len(self.held) - 1))]

    @precondition(lambda self: len(self.spares) > 0)
    @rule()
    def make_a_spare(self) -> None:
        before = self.pool.num_bytes
        self.spares.finish()
        assert self.pool.num_bytes <= max(CAPACITY, before)

    @rule(size=st.sampled_from(SIZES))
    def find_memory_full(self, size: int) -> None:
        self.memory.is_full = True
        with suppress(MemoryError):
            self.held.append((self.pool.take(size).fill_(7), 7))
        while len(self.spares):
            self.spares.finish()
        self.memory.is_full = False

    @invariant()
    def no_room_is_given_twice(self) -> None:
        for seen, byte in getattr(self, "held", []):
            assert (seen[::1021] == byte).all()  # rooms lie on pages, and so would what overlaps

    @invariant()
    def all_rooms_are_counted(self) -> None:
        if hasattr(self, "rooms"):
            assert self.pool.num_bytes == self.memory.num_bytes


TestRooms = RoomsMachine.TestCase
TestRooms.settings = settings(max_examples=40, stateful_step_count=30)


@pytest.fixture
def memory() -> CountedMemory:
    return CountedMemory()


def test_a_room_is_used_again_once_nothing_lies_in_it(memory: CountedMemory) -> None:
    pool = BufferPool(memory, CAPACITY)
    first = pool.take(UNIT)
    kept = first[5:].numpy()[3:]
    address = first.data_ptr()
    del first
    assert pool.take(UNIT).data_ptr() != address
    del kept
    again = pool.take(UNIT)
    other = pool.take(UNIT - 1)  # of another length, and yet like it
    assert address in (again.data_ptr(), other.data_ptr())
    assert memory.num_made == 2


def test_after_a_load_there_is_a_room_for_one_more(memory: CountedMemory) -> None:
    spares = HeldExecutor()
    pool = BufferPool(memory, CAPACITY, spares)
    held = [pool.take(UNIT)]
    spares.finish()
    assert memory.num_made == 2
    held.append(pool.take(UNIT))
    assert memory.num_made == 2
    while len(spares):
        spares.finish()
    assert memory.num_made == 3
    held += [pool.take(UNIT), pool.take(UNIT)]
    while len(spares):
        spares.finish()
    assert memory.num_bytes == CAPACITY  # and no spare beyond
    del held
    pool.take(3 * UNIT)
    assert memory.num_bytes == CAPACITY  # three went for it
    assert pool.num_bytes == CAPACITY


@pytest.mark.parametrize("num_bytes", [1, 65536, 65537, 10**6, 83_886_080, (1 << 30) - 1, 1 << 30])
def test_a_room_is_hardly_larger_than_what_it_is_for(num_bytes: int) -> None:
    size = buffer_size(num_bytes)
    assert num_bytes <= size <= max(num_bytes * 9 / 8, num_bytes + 65535)
    assert size % mmap.PAGESIZE == 0
    assert buffer_size(size) == size


def test_threads_share_rooms(memory: CountedMemory) -> None:
    wrong: list[int] = []
    with ThreadPoolExecutor(1) as spares:
        pool = BufferPool(memory, CAPACITY, spares)
        start = threading.Barrier(4)

        def load(number: int) -> None:
            start.wait()
            for turn in range(200):
                buffer = pool.take(SIZES[(number + turn) % 4])
                buffer.fill_(number)
                if not (buffer == number).all():
                    wrong.append(turn)

        threads = [threading.Thread(target=load, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []
    assert pool.num_bytes == memory.num_bytes <= CAPACITY


def adapter(seed: int, shapes: list[GroupShape]) -> PackedAdapter:
    generator = np.random.default_rng(seed)

    def bits(rows: int, columns: int) -> npt.NDArray[np.uint16]:
        return generator.standard_normal((rows, columns)).astype(np.float16).view(np.uint16)

    layers = [
        PackedLayer(LayerPlace(group, part), bits(8, shape.in_features), bits(outputs, 8).T)
        for group, shape in enumerate(shapes)
        for part, outputs in enumerate(shape.out_features)
    ]
    table = np.zeros((len(shapes), 3))
    return PackedAdapter(
        8, WeightFormat.FLOAT16, layers, table.astype(np.int32), table.astype(np.float32), 2
    )


def test_adapters_lie_in_rooms_as_they_would_anywhere(memory: CountedMemory) -> None:
    shapes = [GroupShape(16, (8, 4, 4)), GroupShape(8, (16,))]
    pool = BufferPool(memory, CAPACITY)
    device, dtype = torch.device("cpu"), torch.float16
    slab = ExtendedSlab(shapes, 40, device, dtype, [False, False], pool)
    plain = ExtendedSlab(shapes, 40, device, dtype, [False, False])
    for seed in range(4):
        wanted = adapter(seed, shapes)
        packed = slab.pack(wanted)
        for own, layer in zip(packed.layers, wanted.layers, strict=True):
            assert np.array_equal(own.a_RK, layer.a_RK)
            assert np.array_equal(own.b_RN, layer.b_RN)
        slab.write(8, packed)
        plain.write(8, plain.pack(wanted))
        for found, expected in ((slab.a, plain.a), (slab.b, plain.b)):
            for rows, others in zip(found, expected, strict=True):
                half = len(rows) // 40 * 8
                assert torch.equal(rows[half : 2 * half], others[half : 2 * half])
        del packed, own
    assert memory.num_made == 1


class FakeDriver:
    """What is pinned."""

    def __init__(self) -> None:
        self.pinned: dict[int, int] = {}
        self.code = 0

    def cudaHostRegister(self, address: int, num_bytes: int, flags: int) -> int:
        assert flags == 0
        if not self.code:
            self.pinned[address] = num_bytes
        return self.code

    def cudaHostUnregister(self, address: int) -> int:
        if not self.code:
            del self.pinned[address]
        return self.code


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    driver = FakeDriver()

    class CudaError(RuntimeError):
        """As torch has it where there is a GPU."""

    def device(_: torch.device) -> AbstractContextManager[None]:
        return nullcontext()

    fake = SimpleNamespace(cudart=lambda: driver, device=device, CudaError=CudaError)
    monkeypatch.setattr(torch, "cuda", fake)
    return driver


def test_memory_is_pinned_as_a_whole_and_given_back(driver: FakeDriver) -> None:
    memory = PinnedMemory(torch.device("cpu"))
    buffers = [memory.make(65536), memory.make(4 * UNIT)]
    assert driver.pinned == {buffer.ctypes.data: len(buffer) for buffer in buffers}
    assert all(buffer.ctypes.data % mmap.PAGESIZE == 0 for buffer in buffers)
    assert all(buffer.flags.writeable for buffer in buffers)
    for buffer in buffers:
        memory.free(buffer)
    assert driver.pinned == {}


def test_memory_that_cannot_be_pinned_will_do(
    driver: FakeDriver, caplog: pytest.LogCaptureFixture
) -> None:
    memory = PinnedMemory(torch.device("cpu"))
    driver.code = 2
    buffer = memory.make(UNIT)
    buffer.fill(1)
    other = memory.make(UNIT)
    assert caplog.text.count("cannot pin 262144 bytes for an adapter") == 1  # once is enough
    memory.free(buffer)
    memory.free(other)


def test_nothing_is_pinned_longer_than_it_is_there(driver: FakeDriver) -> None:
    memory = PinnedMemory(torch.device("cpu"))
    pool = BufferPool(memory, 16 * UNIT)
    part = pool.take(UNIT)[7:9].numpy()
    pool.take(2 * UNIT)
    assert len(driver.pinned) == 2
    del pool
    gc.collect()
    assert part.ctypes.data - 7 in driver.pinned  # of which a part is in use
    del part, memory
    gc.collect()
    assert driver.pinned == {}


def test_what_the_driver_does_not_let_go_of_stays_where_it_is(
    driver: FakeDriver, caplog: pytest.LogCaptureFixture
) -> None:
    memory = PinnedMemory(torch.device("cpu"))
    pool = BufferPool(memory, UNIT)
    buffer = memory.make(UNIT)
    address = buffer.ctypes.data
    driver.code = 1
    memory.free(buffer)
    del buffer
    assert "262144 bytes for adapters stay pinned" in caplog.text
    assert address in driver.pinned
    driver.code = 0
    assert all(memory.make(UNIT).ctypes.data != address for _ in range(8))
    assert pool.take(UNIT).data_ptr() != address


def test_memory_needs_no_large_pages(driver: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mmap, "MADV_HUGEPAGE", 12345)  # which gives EINVAL, as where there are none
    memory = PinnedMemory(torch.device("cpu"))
    assert len(memory.make(UNIT)) == UNIT


def test_no_memory_at_all_is_an_error_of_memory(driver: FakeDriver) -> None:
    with pytest.raises(MemoryError):
        PinnedMemory(torch.device("cpu")).make(1 << 60)
    assert driver.pinned == {}
