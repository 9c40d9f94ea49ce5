"""Explicit SIMD vectors of 16 float32 for numba kernels.

LLVM maps a vector to one or two registers, depending on the processor. Scalar loops are left to
LLVM's auto-vectorizer only where they are not hot: it guards each short loop with checks that cost
more than the loop.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llvmlite import ir
from numba import types
from numba.core.cgutils import get_or_insert_function
from numba.extending import intrinsic, models, overload, register_model

from loramux_server.kernels.cpu.parallel import FASTMATH

WIDTH = 16
"""Elements of a vector."""
LINE_BYTES = 64
"""Size of a cache line."""
FIRST_CACHE, SECOND_CACHE = 3, 2
"""L1 and L2, as the locality argument of LLVM's prefetch."""

FLOATS = ir.VectorType(ir.FloatType(), WIDTH)
FAST = tuple(FASTMATH)


class _Vector(types.Type):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__(name=f"float32x{WIDTH}")


VECTOR = _Vector()


@register_model(_Vector)
class _VectorModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, FLOATS)


@dataclass(frozen=True)
class Elements:
    """An element type in memory."""

    item: ir.Type
    item_bytes: int
    widen: Callable[[Any, Any], Any]
    """Emits code that converts a vector of items to float32."""

    def emit_load(self, builder: Any, address: Any) -> Any:
        """Emit code that loads WIDTH elements at an integer address as float32."""
        pointer = builder.inttoptr(address, ir.VectorType(self.item, WIDTH).as_pointer())
        return self.widen(builder, builder.load(pointer, align=1))


def _loads(elements: Elements) -> Any:
    """Return an intrinsic that loads WIDTH elements at an address as float32."""

    @intrinsic  # type: ignore[untyped-decorator]
    def load_elements(typing_context: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return elements.emit_load(builder, arguments[0])

        return VECTOR(types.int64), generate

    return load_elements


_INTEGERS = ir.VectorType(ir.IntType(32), WIDTH)


def _widen_bfloat16(builder: Any, bits: Any) -> Any:
    """Emit bfloat16 to float32: bfloat16 is the upper half of float32."""
    shift = ir.Constant(_INTEGERS, [16] * WIDTH)
    return builder.bitcast(builder.shl(builder.zext(bits, _INTEGERS), shift), FLOATS)


FLOAT32 = Elements(ir.FloatType(), 4, lambda builder, value: value)
BFLOAT16 = Elements(ir.IntType(16), 2, _widen_bfloat16)
FLOAT16 = Elements(ir.HalfType(), 2, lambda builder, value: builder.fpext(value, FLOATS))
INT8 = Elements(
    ir.IntType(8), 1, lambda builder, value: builder.sitofp(builder.sext(value, _INTEGERS), FLOATS)
)

load = _loads(FLOAT32)
"""In a kernel: load 16 float32 at an integer address."""
load_bfloat16 = _loads(BFLOAT16)
"""In a kernel: load 16 bfloat16 at an integer address, widened."""
load_float16 = _loads(FLOAT16)
"""In a kernel: load 16 float16 at an integer address, widened."""


@intrinsic  # type: ignore[untyped-decorator]
def store(typing_context: Any, address: Any, value: Any) -> Any:
    """In a kernel: store a vector at an integer address."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = builder.inttoptr(arguments[0], FLOATS.as_pointer())
        builder.store(arguments[1], pointer, align=1)
        return context.get_dummy_value()

    return types.void(types.int64, VECTOR), generate


@intrinsic  # type: ignore[untyped-decorator]
def prefetch(typing_context: Any, address: Any) -> Any:
    """In a kernel: prefetch the cache line at an integer address, which need not be valid."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        emit_prefetch(builder, arguments[0], FIRST_CACHE)
        return context.get_dummy_value()

    return types.void(types.int64), generate


def emit_prefetch(builder: Any, address: Any, cache: int) -> None:
    """Emit code that prefetches the cache line at an integer address into `cache`."""
    pointer, number = ir.IntType(8).as_pointer(), ir.IntType(32)
    kind = ir.FunctionType(ir.VoidType(), [pointer, number, number, number])
    function = get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    to_read, keep, data = (ir.Constant(number, value) for value in (0, cache, 1))
    builder.call(function, [builder.inttoptr(address, pointer), to_read, keep, data])


@intrinsic  # type: ignore[untyped-decorator]
def splat(typing_context: Any, value: Any) -> Any:
    """In a kernel: broadcast a number to a vector."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return emit_splat(builder, arguments[0])

    return VECTOR(types.float32), generate


def emit_splat(builder: Any, number: Any) -> Any:
    """Emit code that broadcasts a number to a vector."""
    undefined = ir.Constant(FLOATS, ir.Undefined)
    first = builder.insert_element(undefined, number, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(_INTEGERS, [0] * WIDTH))


@intrinsic  # type: ignore[untyped-decorator]
def exp(typing_context: Any, value: Any) -> Any:
    """In a kernel: e to the power of each element, in float32; arguments are clamped to +-87."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        def number(value: float) -> Any:
            return ir.Constant(FLOATS, [value] * WIDTH)

        def call(name: str, *values: Any) -> Any:
            kind = ir.FunctionType(FLOATS, [FLOATS] * len(values))
            function = get_or_insert_function(builder.module, kind, f"llvm.{name}.v{WIDTH}f32")
            return builder.call(function, values)

        x = call("maxnum", call("minnum", arguments[0], number(87.0)), number(-87.0))
        whole = call("rint", builder.fmul(x, number(1.4426950408889634)))
        # ln 2 split in two (Cody-Waite): the product with the first part is exact.
        rest = builder.fsub(x, builder.fmul(whole, number(0.693359375)))
        rest = builder.fadd(rest, builder.fmul(whole, number(2.12194440e-4)))
        power = number(1 / 720)
        for factor in (1 / 120, 1 / 24, 1 / 6, 1 / 2, 1.0, 1.0):
            power = builder.fadd(builder.fmul(power, rest, flags=FAST), number(factor), flags=FAST)
        exponent = builder.add(
            builder.fptosi(whole, _INTEGERS), ir.Constant(_INTEGERS, [127] * WIDTH)
        )
        bits = builder.shl(exponent, ir.Constant(_INTEGERS, [23] * WIDTH))
        return builder.fmul(power, builder.bitcast(bits, FLOATS))

    return VECTOR(VECTOR), generate


def emit_reduce(builder: Any, name: str, value: Any, *start: float) -> Any:
    """Emit code that reduces a vector to one number."""
    number = ir.FloatType()
    kind = ir.FunctionType(number, [number] * len(start) + [FLOATS])
    function = get_or_insert_function(
        builder.module, kind, f"llvm.vector.reduce.{name}.v{WIDTH}f32"
    )
    first = [ir.Constant(number, value) for value in start]
    return builder.call(function, [*first, value], fastmath=FAST)


def _reduces(name: str, *start: float) -> Any:
    """Return an intrinsic that reduces a vector to one number."""

    @intrinsic  # type: ignore[untyped-decorator]
    def reduce(typing_context: Any, value: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return emit_reduce(builder, name, arguments[0], *start)

        return types.float32(VECTOR), generate

    return reduce


total = _reduces("fadd", 0.0)
"""In a kernel: the sum of a vector's elements."""


def _binary(symbol: Any, name: str) -> None:
    """Overload the Python operator `symbol` for two vectors."""

    @intrinsic  # type: ignore[untyped-decorator]
    def combine(typing_context: Any, a: Any, b: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return getattr(builder, name)(*arguments, flags=FAST)

        return VECTOR(VECTOR, VECTOR), generate

    # No annotations: the signature has to match that of the lambda for numba.
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
