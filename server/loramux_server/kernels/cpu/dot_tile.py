"""Micro-kernel for dot products of a few weight rows with a few inputs, summed in registers."""

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from loramux_server.kernels.cpu.register_tile import (
    HAS_WIDE_REGISTERS,
    emit_offset,
    emit_switch,
    number,
)
from loramux_server.kernels.cpu.simd import FAST, FLOAT32, FLOATS, WIDTH, Elements, emit_reduce

ROWS = 4
"""Weight rows that are read at once, each as a stream."""
INPUTS = 4 if HAS_WIDE_REGISTERS else 1
"""Inputs that are multiplied with them at once."""


def dots_for(weights: Elements) -> Any:
    """Return an intrinsic for dot products of up to ROWS rows of `weights` and INPUTS inputs.

    In a kernel, with addresses and byte strides as integers:

        dots(rows, inputs, w, w_stride, x, x_stride, depth, scale, out, out_stride)

    writes scale * (w[r] . x[i]) to out[i][r], for rows of `depth` elements, a multiple of WIDTH.
    """

    @intrinsic  # type: ignore[untyped-decorator]
    def dots(
        typing_context: Any, rows: Any, inputs: Any, w: Any, w_stride: Any, x: Any, x_stride: Any,
        depth: Any, scale: Any, out: Any, out_stride: Any,
    ) -> Any:  # fmt: skip
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            rows, inputs, *others = arguments
            emit_switch(
                builder, inputs, INPUTS,
                lambda input_count: emit_switch(
                    builder, rows, ROWS,
                    lambda row_count: _emit(builder, weights, row_count, input_count, *others),
                ),
            )  # fmt: skip
            return context.get_dummy_value()

        integer = types.int64
        return types.void(*[integer] * 7, types.float32, integer, integer), generate

    return dots


def _emit(
    builder: Any, weights: Elements, rows: int, inputs: int, w: Any, w_stride: Any, x: Any,
    x_stride: Any, depth: Any, scale: Any, out: Any, out_stride: Any,
) -> None:  # fmt: skip
    before = builder.block
    w_rows = [emit_offset(builder, w, w_stride, row) for row in range(rows)]
    x_rows = [emit_offset(builder, x, x_stride, row) for row in range(inputs)]
    loop, after = builder.append_basic_block("depth"), builder.append_basic_block("sums")
    builder.branch(loop)
    builder.position_at_end(loop)
    k = builder.phi(ir.IntType(64))
    k.add_incoming(number(0), before)
    sums = [[builder.phi(FLOATS) for _ in w_rows] for _ in x_rows]
    x_k = [FLOAT32.emit_load(builder, emit_offset(builder, row, k, 4)) for row in x_rows]
    for row, w_row in enumerate(w_rows):
        w_k = weights.emit_load(builder, emit_offset(builder, w_row, k, weights.item_bytes))
        for place, value in enumerate(x_k):
            total = sums[place][row]
            added = builder.fadd(builder.fmul(value, w_k, flags=FAST), total, flags=FAST)
            total.add_incoming(ir.Constant(FLOATS, [0.0] * WIDTH), before)
            total.add_incoming(added, loop)
            sums[place][row] = added
    k_next = builder.add(k, number(WIDTH))
    k.add_incoming(k_next, loop)
    builder.cbranch(builder.icmp_signed("<", k_next, depth), loop, after)
    builder.position_at_end(after)
    for place in range(inputs):
        out_row = emit_offset(builder, out, out_stride, place)
        for row in range(rows):
            value = builder.fmul(emit_reduce(builder, "fadd", sums[place][row], 0.0), scale)
            at = builder.add(out_row, number(4 * row))
            builder.store(value, builder.inttoptr(at, ir.FloatType().as_pointer()), align=4)
