"""The device tier on a GPU: A rows are stored after the base weights that take the same input.

So one matmul computes both, and A needs no kernel of its own. All weights have the model's dtype.
The A rows of quantized base layers, which have no plain weight matrix, are stored separately.

Legend: E base rows and A rows of a group, K input width, N output width, R rank rows.
"""

from collections import deque
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from loramux_server.lora.adapter_table import AdapterTable
from loramux_server.lora.affine import vectors_of, with_vectors
from loramux_server.lora.buffer_pool import BufferPool
from loramux_server.lora.packed import PackedAdapter
from loramux_server.lora.row_allocator import GRANULE
from loramux_server.lora.slab import DTYPES, FORMATS, GroupShape, Slab
from loramux_server.lora.weights import Weights
from loramux_server.lora.yield_cpu import yield_cpu
from loramux_server.wire.weight_format import StorageFormat

_MOST_BYTES = 256 << 20
"""Bytes of an adapter that are staged on the device at a time while it is loaded, per load thread;
a larger matrix is staged whole."""


class ExtendedSlab(Slab):
    """A slab in which a group's A rows follow its base weights.

    An adapter is copied from pinned memory in one piece, or a few, on a separate stream, and then
    scattered to its rows on the device. Running steps do not read these rows: the scatter waits for
    the last step started before it, and requests that used the rows' previous owner have ended.
    """

    packs = True

    def __init__(
        self,
        shapes: list[GroupShape],
        num_rows: int,
        device: torch.device,
        dtype: torch.dtype,
        is_plain: Sequence[bool] | None = None,
        buffers: BufferPool | None = None,
    ) -> None:
        """Allocate `num_rows` rank rows of `dtype`, rounded down to whole granules.

        Args:
            shapes: Shape of each group.
            num_rows: Rank rows.
            device: Their device.
            dtype: Their dtype.
            is_plain: Per group, whether `place` will be called with its base weights; default all.
            buffers: Pool of host buffers for adapters; by default each has memory of its own.
        """
        if is_plain is None:
            is_plain = [True] * len(shapes)
        self.shapes = shapes
        self.num_rows = num_rows = num_rows // GRANULE * GRANULE
        self.storage_format = StorageFormat(FORMATS[dtype], is_only=True)
        """The storage format of adapters."""
        self.extended = [None] * len(shapes)
        self.a = [
            torch.empty(0 if here else shape.num_parts * num_rows, shape.in_features,
                        dtype=dtype, device=device)
            for shape, here in zip(shapes, is_plain, strict=True)
        ]  # fmt: skip
        self.b = [
            torch.empty(num_rows, sum(shape.out_features), dtype=dtype, device=device)
            for shape in shapes
        ]
        num_parts = max(shape.num_parts for shape in shapes)
        self.table = AdapterTable.empty(len(shapes), num_rows, num_parts, device)
        self._fence: torch.cuda.Event | None = None
        """Event after the last step that was started."""
        self._device, self._dtype = device, dtype
        self._buffers = buffers
        self._columns = [np.cumsum((0, *shape.out_features)).tolist() for shape in shapes]
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def place(self, group: int, weight_NK: torch.Tensor) -> torch.Tensor:
        """Copy the base weights of `group` directly in front of its A rows; return the copy.

        Memory is allocated here, group by group, so that the original weights can be freed one by
        one: the device need not hold the model twice.
        """
        shape, base = self.shapes[group], len(weight_NK)
        extended = torch.empty(
            base + shape.num_parts * self.num_rows, shape.in_features,
            dtype=self._dtype, device=self._device,
        )  # fmt: skip
        self.extended[group], self.a[group] = extended, extended[base:]
        return extended[:base].copy_(weight_NK)

    def on_load_stream(self) -> AbstractContextManager[object]:
        """Run the block's device work on the load stream, concurrently with steps."""
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def note_step(self) -> None:
        """Make later writes wait for the step that was just started."""
        if self._stream is not None:
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
            self._fence = event

    def pack(self, adapter: PackedAdapter) -> PackedAdapter:
        """Return `adapter` with its weights in one host buffer, in slab layout, for a single copy.

        Unused parts of its rows stay uninitialized. Factors and shifts come last.
        """
        dtype, pieces = DTYPES[adapter.format], self._pieces(adapter)
        affine = adapter.edits.affine if adapter.edits else {}
        sizes = [shape.numel() for shape in pieces.values()]
        found = [vector_N for *_, vector_N in vectors_of(affine)]
        num_bytes = sum(sizes) * dtype.itemsize + sum(vector_N.nbytes for vector_N in found)
        make = self._buffers.take if self._buffers else partial(torch.empty, dtype=torch.uint8)
        blob = make(num_bytes).view(dtype)
        rows, tail = _split(blob, sum(sizes))
        held = {
            key: piece.view(shape)
            for (key, shape), piece in zip(
                pieces.items(), rows.split_with_sizes(sizes), strict=True
            )
        }
        layers = []
        for layer in adapter.layers:
            group, part, rank = layer.place.group, layer.place.part, len(layer.a_RK)
            first = part * adapter.num_rows
            n0, n1 = self._columns[group][part : part + 2]
            a_RK = _array(held[group, 0][first : first + rank], layer.a_RK)
            b_RN = _array(held[group, 1][:rank, n0:n1], layer.b_RN)
            # numpy transposes B in two thirds of the time that torch takes.
            a_RK[...], b_RN[...] = layer.a_RK, layer.b_RN
            layers.append(replace(layer, a_RK=a_RK, b_RN=b_RN))
            yield_cpu()
        kept = list(tail.split_with_sizes(list(map(len, found))))
        for place_N, vector_N in zip(kept, found, strict=True):
            place_N.copy_(vector_N)
        edits = adapter.edits and replace(adapter.edits, affine=with_vectors(affine, kept))
        return replace(adapter, layers=layers, blob=blob, edits=edits)

    def write(self, row: int, adapter: PackedAdapter) -> None:
        """Copy `adapter` to the run of rows that begins at `row`; return when that is done."""
        if self._stream is None:
            self._write(row, adapter)
            return
        try:
            with self.on_load_stream():
                if self._fence is not None:
                    self._stream.wait_event(self._fence)
                self._write(row, adapter)
        finally:
            # Until then the device reads the host buffer, which `adapter` keeps from being reused.
            self._stream.synchronize()

    def _write(self, row: int, adapter: PackedAdapter) -> None:
        assert adapter.blob is not None
        assert self.table is not None
        size, pieces = adapter.num_rows, self._pieces(adapter)
        sizes = [shape.numel() for shape in pieces.values()]
        rows, tail = _split(adapter.blob, sum(sizes))
        targets = []
        for group, half in pieces:
            stack = 1 if half else self.shapes[group].num_parts
            slab = (self.b if half else self.a)[group]
            targets.append(slab[stack * row : stack * (row + size)].view(-1))
        _copy(targets, rows)
        found = vectors_of(adapter.edits.affine) if adapter.edits else ()
        _copy([self._vector(group, part, kind, row + size) for group, part, kind, _ in found], tail)
        number = row // GRANULE
        self.table.size_A[number] = size
        self.table.rank_GAP[:, number] = torch.from_numpy(adapter.rank_GP).to(self._device)
        self.table.scale_GAP[:, number] = torch.from_numpy(adapter.scale_GP).to(self._device)
        kinds_GP = adapter.kinds()
        if kinds_GP is None:
            kinds_GP = np.zeros_like(adapter.rank_GP)
        self.table.affine_GAP[:, number] = torch.from_numpy(kinds_GP).to(self._device)

    def _pieces(self, adapter: PackedAdapter) -> dict[tuple[int, int], torch.Size]:
        """Return (group, 0 for A or 1 for B) -> shape of the adapter's rows there."""
        size, pieces = adapter.num_rows, {}
        for group in sorted({layer.place.group for layer in adapter.layers}):
            shape = self.shapes[group]
            pieces[group, 0] = torch.Size((shape.num_parts * size, shape.in_features))
            pieces[group, 1] = torch.Size((size, sum(shape.out_features)))
        return pieces


def _split(blob: torch.Tensor, num_weights: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the weights of a blob, and the rest as float32; even row counts keep it aligned."""
    return blob[:num_weights], blob[num_weights:].view(torch.float32)


def _copy(targets: list[torch.Tensor], sources: torch.Tensor) -> None:
    """Scatter contiguous host memory to `targets`, in order.

    It is staged on the device in as few pieces as `_MOST_BYTES` of free memory allow.
    """
    most, begin = _MOST_BYTES // sources.itemsize, 0
    left = deque(targets)
    while left:
        piece = [left.popleft()]
        size = piece[0].numel()
        while left and size + left[0].numel() <= most:
            piece.append(left.popleft())
            size += piece[-1].numel()
        there = sources[begin : begin + size].to(piece[0].device, non_blocking=True)
        torch._foreach_copy_(piece, list(there.split_with_sizes([one.numel() for one in piece])))
        begin += size
        del there  # free it before the next piece is allocated


_BITS = {2: torch.int16, 4: torch.int32}


def _array(values: torch.Tensor, like: Weights) -> Weights:
    """Return `values` as an array with the dtype of `like`, sharing memory."""
    array: Weights = values.view(_BITS[like.dtype.itemsize]).numpy().view(like.dtype)
    return array
