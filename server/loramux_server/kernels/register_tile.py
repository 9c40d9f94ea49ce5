"""The product of a few rows with a panel of weights, as one loop whose sums stay in registers.

Source of the form: the micro-kernel of Goto and van de Geijn, "Anatomy of High-Performance Matrix
Multiplication", ACM TOMS 34 (3), 2008.
"""

from typing import Any

import llvmlite.binding
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from loramux_server.kernels.simd import (
    FAST,
    FLOATS,
    WIDTH,
    Elements,
    emit_prefetch,
    emit_splat,
)

_HAS_WIDE_REGISTERS = bool(llvmlite.binding.get_host_cpu_features().get("avx512f"))
"""32 registers of 16 numbers; otherwise there are 16 of 8 to count on."""
MAX_ROWS, _VECTORS = (12, 2) if _HAS_WIDE_REGISTERS else (6, 1)
"""Sums of so many rows and vectors fit the registers, beside the weights and an input."""
PANEL = _VECTORS * WIDTH
"""Outputs in a panel of weights."""
_ADDRESS = ir.IntType(64)


def tile_for(weights: Elements) -> Any:
    """Return an intrinsic that multiplies up to MAX_ROWS rows with a panel of `weights`.

    In a kernel, with addresses and byte strides as integers:

        tile(rows, x, x_stride, panel, depth, scale, bias, y, y_stride, adds, ahead, ahead_step)

    computes y[r] = x[r] @ panel * scale + bias, on top of y[r] where `adds` is not 0, for a panel
    of [depth, PANEL]. While it goes on it fetches what lies at `ahead`, `ahead_step` bytes for each
    step in depth.
    """

    @intrinsic  # type: ignore[untyped-decorator]
    def tile(
        typing_context: Any, rows: Any, x: Any, x_stride: Any, panel: Any, depth: Any, scale: Any,
        bias: Any, y: Any, y_stride: Any, adds: Any, ahead: Any, ahead_step: Any,
    ) -> Any:  # fmt: skip
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            rows, *others = arguments
            end = builder.append_basic_block("end")
            switch = builder.switch(rows, end)
            for count in range(1, MAX_ROWS + 1):
                block = builder.append_basic_block(f"rows{count}")
                switch.add_case(ir.Constant(_ADDRESS, count), block)
                builder.position_at_end(block)
                _emit_rows(builder, weights, count, *others)
                builder.branch(end)
            builder.position_at_end(end)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 12), generate

    return tile


def _emit_rows(
    builder: Any, weights: Elements, rows: int, x: Any, x_stride: Any, panel: Any, depth: Any,
    scale: Any, bias: Any, y: Any, y_stride: Any, adds: Any, ahead: Any, ahead_step: Any,
) -> None:  # fmt: skip
    """Emit the product for one number of rows."""
    x_rows = [_offset(builder, x, x_stride, row) for row in range(rows)]
    sums = _emit_loop(builder, weights, x_rows, panel, depth, ahead, ahead_step)
    for row in range(rows):
        y_row = _offset(builder, y, y_stride, row)
        for vector in range(_VECTORS):
            at = _number(4 * WIDTH * vector)
            scaled = builder.fmul(sums[row][vector], _load(builder, builder.add(scale, at)))
            sums[row][vector] = builder.fadd(
                scaled, _load(builder, builder.add(bias, at)), flags=FAST
            )
    is_sum = builder.icmp_signed("!=", adds, _number(0))
    with builder.if_else(is_sum) as (then, otherwise):
        for branch, is_added in ((then, True), (otherwise, False)):
            with branch:
                for row in range(rows):
                    y_row = _offset(builder, y, y_stride, row)
                    for vector in range(_VECTORS):
                        at = builder.add(y_row, _number(4 * WIDTH * vector))
                        value = sums[row][vector]
                        if is_added:
                            value = builder.fadd(value, _load(builder, at))
                        builder.store(value, builder.inttoptr(at, FLOATS.as_pointer()), align=1)


def _emit_loop(
    builder: Any, weights: Elements, x_rows: list[Any], panel: Any, depth: Any, ahead: Any,
    ahead_step: Any,
) -> list[list[Any]]:  # fmt: skip
    """Emit the loop over depth and return its sums, by row and vector."""
    before = builder.block
    loop = builder.append_basic_block("depth")
    after = builder.append_basic_block("sums")
    builder.branch(loop)
    builder.position_at_end(loop)
    k = builder.phi(_ADDRESS)
    k.add_incoming(_number(0), before)
    sums = [[builder.phi(FLOATS) for _ in range(_VECTORS)] for _ in x_rows]
    weights_k = [
        weights.emit_load(
            builder,
            builder.add(
                _offset(builder, panel, k, PANEL * weights.item_bytes),
                _number(vector * WIDTH * weights.item_bytes),
            ),
        )
        for vector in range(_VECTORS)
    ]
    new = []
    for row, x_row in enumerate(x_rows):
        at = builder.inttoptr(_offset(builder, x_row, k, 4), ir.FloatType().as_pointer())
        x_k = emit_splat(builder, builder.load(at, align=4))
        new.append([
            builder.fadd(builder.fmul(x_k, weight, flags=FAST), total, flags=FAST)
            for weight, total in zip(weights_k, sums[row], strict=True)
        ])  # fmt: skip
    emit_prefetch(builder, builder.add(ahead, builder.mul(ahead_step, k)))
    k_next = builder.add(k, _number(1))
    k.add_incoming(k_next, loop)
    for totals, added in zip(sums, new, strict=True):
        for total, value in zip(totals, added, strict=True):
            total.add_incoming(ir.Constant(FLOATS, [0.0] * WIDTH), before)
            total.add_incoming(value, loop)
    builder.cbranch(builder.icmp_signed("<", k_next, depth), loop, after)
    builder.position_at_end(after)
    return new


def _load(builder: Any, address: Any) -> Any:
    return builder.load(builder.inttoptr(address, FLOATS.as_pointer()), align=1)


def _offset(builder: Any, address: Any, stride: Any, count: int) -> Any:
    return builder.add(address, builder.mul(stride, _number(count)))


def _number(value: int) -> Any:
    return ir.Constant(_ADDRESS, value)
