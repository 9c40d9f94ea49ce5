"""Vectors of 16 float32 for compiled kernels: what a kernel writes is what the processor runs.

LLVM makes one or two registers of a vector, whatever the processor has. Loops over single numbers
are left to LLVM's own vectorizer only where they are not hot: it guards each short loop with checks
that cost more than the loop.
"""

import operator
from typing import Any

from llvmlite import ir
from numba import types
from numba.core.cgutils import get_or_insert_function
from numba.extending import intrinsic, models, overload, register_model

from loramux_server.kernels.parallel import FASTMATH

WIDTH = 16
"""Numbers in a vector."""

_FLOATS = ir.VectorType(ir.FloatType(), WIDTH)
_FAST = tuple(FASTMATH)


class _Vector(types.Type):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__(name=f"float32x{WIDTH}")


VECTOR = _Vector()


@register_model(_Vector)
class _VectorModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, _FLOATS)


def _loads(element: ir.Type, widen: Any) -> Any:
    """Return an intrinsic that loads WIDTH elements at an address and widens them to float32."""

    @intrinsic  # type: ignore[untyped-decorator]
    def load_elements(typing_context: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            kind = ir.VectorType(element, WIDTH)
            pointer = builder.inttoptr(arguments[0], kind.as_pointer())
            return widen(builder, builder.load(pointer, align=1))

        return VECTOR(types.int64), generate

    return load_elements


def _widen_bfloat16(builder: Any, bits: Any) -> Any:
    """bfloat16 is the upper half of float32."""
    integers = ir.VectorType(ir.IntType(32), WIDTH)
    shift = ir.Constant(integers, [16] * WIDTH)
    return builder.bitcast(builder.shl(builder.zext(bits, integers), shift), _FLOATS)


load = _loads(ir.FloatType(), lambda builder, value: value)
"""In a kernel: the 16 float32 at an integer address."""
load_bfloat16 = _loads(ir.IntType(16), _widen_bfloat16)
"""In a kernel: the 16 bfloat16 at an integer address, widened."""
load_float16 = _loads(ir.HalfType(), lambda builder, value: builder.fpext(value, _FLOATS))
"""In a kernel: the 16 float16 at an integer address, widened."""


@intrinsic  # type: ignore[untyped-decorator]
def store(typing_context: Any, address: Any, value: Any) -> Any:
    """In a kernel: put a vector at an integer address."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = builder.inttoptr(arguments[0], _FLOATS.as_pointer())
        builder.store(arguments[1], pointer, align=1)
        return context.get_dummy_value()

    return types.void(types.int64, VECTOR), generate


@intrinsic  # type: ignore[untyped-decorator]
def prefetch(typing_context: Any, address: Any) -> Any:
    """In a kernel: begin to fetch the cache line at an integer address, which may be any."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [pointer, number, number, number])
        function = get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        to_read, keep, data = (ir.Constant(number, value) for value in (0, 3, 1))
        builder.call(function, [builder.inttoptr(arguments[0], pointer), to_read, keep, data])
        return context.get_dummy_value()

    return types.void(types.int64), generate


@intrinsic  # type: ignore[untyped-decorator]
def splat(typing_context: Any, value: Any) -> Any:
    """In a kernel: a vector of one number."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        first = builder.insert_element(
            ir.Constant(_FLOATS, ir.Undefined), arguments[0], ir.Constant(ir.IntType(32), 0)
        )
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), WIDTH), [0] * WIDTH)
        return builder.shuffle_vector(first, ir.Constant(_FLOATS, ir.Undefined), zeros)

    return VECTOR(types.float32), generate


@intrinsic  # type: ignore[untyped-decorator]
def exp(typing_context: Any, value: Any) -> Any:
    """In a kernel: e to the power of each number, in float32; beyond +-87 as at +-87."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        def number(value: float) -> Any:
            return ir.Constant(_FLOATS, [value] * WIDTH)

        def call(name: str, *values: Any) -> Any:
            kind = ir.FunctionType(_FLOATS, [_FLOATS] * len(values))
            function = get_or_insert_function(builder.module, kind, f"llvm.{name}.v{WIDTH}f32")
            return builder.call(function, values)

        x = call("maxnum", call("minnum", arguments[0], number(87.0)), number(-87.0))
        whole = call("rint", builder.fmul(x, number(1.4426950408889634)))
        # ln 2 in two parts: the product with the first is exact.
        rest = builder.fsub(x, builder.fmul(whole, number(0.693359375)))
        rest = builder.fadd(rest, builder.fmul(whole, number(2.12194440e-4)))
        power = number(1 / 720)
        for factor in (1 / 120, 1 / 24, 1 / 6, 1 / 2, 1.0, 1.0):
            power = builder.fadd(
                builder.fmul(power, rest, flags=_FAST), number(factor), flags=_FAST
            )
        integers = ir.VectorType(ir.IntType(32), WIDTH)
        exponent = builder.add(
            builder.fptosi(whole, integers), ir.Constant(integers, [127] * WIDTH)
        )
        bits = builder.shl(exponent, ir.Constant(integers, [23] * WIDTH))
        return builder.fmul(power, builder.bitcast(bits, _FLOATS))

    return VECTOR(VECTOR), generate


def _reduces(name: str, *start: float) -> Any:
    """Return an intrinsic that reduces a vector to one number."""

    @intrinsic  # type: ignore[untyped-decorator]
    def reduce(typing_context: Any, value: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            number = ir.FloatType()
            kind = ir.FunctionType(number, [number] * len(start) + [_FLOATS])
            function = get_or_insert_function(
                builder.module, kind, f"llvm.vector.reduce.{name}.v{WIDTH}f32"
            )
            first = [ir.Constant(number, value) for value in start]
            return builder.call(function, [*first, arguments[0]], fastmath=_FAST)

        return types.float32(VECTOR), generate

    return reduce


total = _reduces("fadd", 0.0)
"""In a kernel: the sum of a vector's numbers."""
highest = _reduces("fmax")
"""In a kernel: the largest of a vector's numbers."""


def _binary(symbol: Any, name: str) -> None:
    """Let two vectors be combined by the Python operator `symbol`."""

    @intrinsic  # type: ignore[untyped-decorator]
    def combine(typing_context: Any, a: Any, b: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return getattr(builder, name)(*arguments, flags=_FAST)

        return VECTOR(VECTOR, VECTOR), generate

    # Without annotations: numba wants those of the lambda.
    @overload(symbol)
    def choose(a, b):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        if isinstance(a, _Vector) and isinstance(b, _Vector):
            return lambda a, b: combine(a, b)
        return None


for _symbol, _name in (
    (operator.add, "fadd"),
    (operator.sub, "fsub"),
    (operator.mul, "fmul"),
    (operator.truediv, "fdiv"),
):
    _binary(_symbol, _name)
