"""Conversion between the bytes of a tensor and float32 arrays."""

import numpy as np
import numpy.typing as npt

from loramux_adapters.errors import PackageError, shown

Array = npt.NDArray[np.float32]
_INTEGERS = {"U8": "u1", "I16": "<i2", "I32": "<i4", "I64": "<i8"}

NAMES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
"""Common name of a dtype -> its name in safetensors."""


def dtype_named(name: str) -> str:
    """Return the safetensors name of the dtype `name`, a common name or a safetensors name.

    Raises:
        PackageError: There is no such dtype.
    """
    found = NAMES.get(name, name)
    if found not in NAMES.values():
        raise PackageError(
            f"dtype is {shown(name)}; expected one of {', '.join(NAMES)}", "INVALID_FIELD"
        )
    return found


def decoded(raw: bytes | memoryview, dtype: str) -> Array:
    """Return the numbers in `raw` as float32, which represents all supported dtypes exactly.

    For float32 the result is a view of `raw`, which must not be modified.
    """
    if dtype == "BF16":  # the upper half of float32
        return (np.frombuffer(raw, "<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)
    if dtype == "F16":
        return np.frombuffer(raw, "<f2").astype(np.float32)
    return np.frombuffer(raw, "<f4")


def integers(raw: bytes | memoryview, dtype: str) -> npt.NDArray[np.int64]:
    """Return the integers in `raw`."""
    return np.frombuffer(raw, _INTEGERS[dtype]).astype(np.int64)


def encoded(values: Array, dtype: str) -> bytes:
    """Return `values` in `dtype`, rounded to nearest, ties to even.

    Values that are too large become infinity.
    """
    if dtype == "F32":
        return values.astype("<f4").tobytes()
    with np.errstate(over="ignore"):
        if dtype == "F16":
            return values.astype("<f2").tobytes()
        bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
        odd = (bits >> np.uint32(16)) & np.uint32(1)
        halves = ((bits + np.uint32(0x7FFF) + odd) >> np.uint32(16)).astype("<u2")
        # The addition would turn some NaNs into numbers.
        return np.where(np.isnan(values), 0x7FC0, halves).astype("<u2").tobytes()


def is_exact(values: Array, dtype: str) -> bool:
    """Return whether `dtype` represents all of `values` exactly."""
    return np.array_equal(decoded(encoded(values, dtype), dtype), values.ravel(), equal_nan=True)
