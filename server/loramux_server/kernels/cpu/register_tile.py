"""GEMM micro-kernel: multiplies a few rows with a panel of weights, accumulating in registers.

Source: the micro-kernel of Goto and van de Geijn, "Anatomy of High-Performance Matrix
Multiplication", ACM TOMS 34 (3), 2008.
"""

from collections.abc import Callable
from typing import Any

import llvmlite.binding
import numba
import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from loramux_server.kernels.cpu.simd import (
    FAST,
    FLOAT32,
    FLOATS,
    LINE_BYTES,
    SECOND_CACHE,
    WIDTH,
    Elements,
    emit_prefetch,
    emit_splat,
)

_FEATURES = numba.config.CPU_FEATURES or llvmlite.binding.get_host_cpu_features().flatten()
HAS_WIDE_REGISTERS = "+avx512f" in _FEATURES.split(",")
"""32 registers of 16 float32 (AVX-512); otherwise 16 registers of 8 are assumed."""
MAX_ROWS, VECTORS = (12, 2) if HAS_WIDE_REGISTERS else (6, 1)
"""Rows and vectors whose sums fit the registers, together with the weights and an input."""
PANEL = VECTORS * WIDTH
"""Outputs in a panel of weights."""
ONES, ZEROS = torch.ones(PANEL), torch.zeros(PANEL)
"""Scale and bias of a panel without them."""
_ADDRESS = ir.IntType(64)


def tile_for(weights: Elements, vectors: int = VECTORS) -> Any:
    """Return an intrinsic that multiplies up to MAX_ROWS rows with a panel of `weights`.

    In a kernel, with addresses and byte strides as integers:

        tile(rows, x, x_stride, panel, panel_stride, depth, scale, bias, y, y_stride, adds, ahead,
             ahead_step)

    computes y[r] = x[r] @ panel * scale + bias, added to y[r] if `adds` is not 0, for a panel of
    [depth, vectors * WIDTH] with depth > 0. Meanwhile it prefetches memory at `ahead`, advancing
    by `ahead_step` bytes per step in depth.
    """

    @intrinsic  # type: ignore[untyped-decorator]
    def tile(
        typing_context: Any, rows: Any, x: Any, x_stride: Any, panel: Any, panel_stride: Any,
        depth: Any, scale: Any, bias: Any, y: Any, y_stride: Any, adds: Any, ahead: Any,
        ahead_step: Any,
    ) -> Any:  # fmt: skip
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            rows, *others = arguments
            emit_switch(
                builder,
                rows,
                MAX_ROWS,
                lambda count: _emit_rows(builder, weights, vectors, count, *others),
            )
            return context.get_dummy_value()

        return types.void(*[types.int64] * 13), generate

    return tile


def _emit_rows(
    builder: Any, weights: Elements, vectors: int, rows: int, x: Any, x_stride: Any, panel: Any,
    panel_stride: Any, depth: Any, scale: Any, bias: Any, y: Any, y_stride: Any, adds: Any,
    ahead: Any, ahead_step: Any,
) -> None:  # fmt: skip
    """Emit the product for a fixed number of rows."""
    x_rows = [emit_offset(builder, x, x_stride, row) for row in range(rows)]
    sums = _emit_loop(
        builder, weights, vectors, x_rows, panel, panel_stride, depth, ahead, ahead_step
    )
    for row in range(rows):
        for vector in range(vectors):
            at = number(4 * WIDTH * vector)
            scaled = builder.fmul(sums[row][vector], _load(builder, builder.add(scale, at)))
            sums[row][vector] = builder.fadd(
                scaled, _load(builder, builder.add(bias, at)), flags=FAST
            )
    is_sum = builder.icmp_signed("!=", adds, number(0))
    with builder.if_else(is_sum) as (then, otherwise):
        for branch, is_added in ((then, True), (otherwise, False)):
            with branch:
                for row in range(rows):
                    y_row = emit_offset(builder, y, y_stride, row)
                    for vector in range(vectors):
                        at = builder.add(y_row, number(4 * WIDTH * vector))
                        value = sums[row][vector]
                        if is_added:
                            value = builder.fadd(value, _load(builder, at))
                        builder.store(value, builder.inttoptr(at, FLOATS.as_pointer()), align=1)


def _emit_loop(
    builder: Any, weights: Elements, vectors: int, x_rows: list[Any], panel: Any,
    panel_stride: Any, depth: Any, ahead: Any, ahead_step: Any,
) -> list[list[Any]]:  # fmt: skip
    """Emit the loop over depth, and return its sums by row and vector."""
    before = builder.block
    loop = builder.append_basic_block("depth")
    after = builder.append_basic_block("sums")
    builder.branch(loop)
    builder.position_at_end(loop)
    k = builder.phi(_ADDRESS)
    k.add_incoming(number(0), before)
    sums = [[builder.phi(FLOATS) for _ in range(vectors)] for _ in x_rows]
    weights_k = [
        weights.emit_load(
            builder,
            builder.add(
                emit_offset(builder, panel, panel_stride, k),
                number(vector * WIDTH * weights.item_bytes),
            ),
        )
        for vector in range(vectors)
    ]
    new = []
    for row, x_row in enumerate(x_rows):
        at = builder.inttoptr(emit_offset(builder, x_row, k, 4), ir.FloatType().as_pointer())
        x_k = emit_splat(builder, builder.load(at, align=4))
        new.append([
            builder.fadd(builder.fmul(x_k, weight, flags=FAST), total, flags=FAST)
            for weight, total in zip(weights_k, sums[row], strict=True)
        ])  # fmt: skip
    # A panel is larger than the L1 cache.
    for line in range(-(-vectors * WIDTH * weights.item_bytes // LINE_BYTES)):
        at = builder.add(emit_offset(builder, ahead, ahead_step, k), number(LINE_BYTES * line))
        emit_prefetch(builder, at, SECOND_CACHE)
    k_next = builder.add(k, number(1))
    k.add_incoming(k_next, loop)
    for totals, added in zip(sums, new, strict=True):
        for total, value in zip(totals, added, strict=True):
            total.add_incoming(ir.Constant(FLOATS, [0.0] * WIDTH), before)
            total.add_incoming(value, loop)
    builder.cbranch(builder.icmp_signed("<", k_next, depth), loop, after)
    builder.position_at_end(after)
    return new


def emit_switch(builder: Any, value: Any, most: int, emit: Callable[[int], None]) -> None:
    """Emit a switch on `value` whose cases 1 to `most` are emitted by `emit`."""
    end = builder.append_basic_block("end")
    switch = builder.switch(value, end)
    for count in range(1, most + 1):
        block = builder.append_basic_block(f"case{count}")
        switch.add_case(number(count), block)
        builder.position_at_end(block)
        emit(count)
        builder.branch(end)
    builder.position_at_end(end)


def emit_offset(builder: Any, address: Any, stride: Any, count: Any) -> Any:
    """Emit `address + stride * count`."""
    stride, count = (number(x) if isinstance(x, int) else x for x in (stride, count))
    return builder.add(address, builder.mul(stride, count))


def number(value: int) -> Any:
    """Return an integer constant."""
    return ir.Constant(_ADDRESS, value)


def _load(builder: Any, address: Any) -> Any:
    return FLOAT32.emit_load(builder, address)
