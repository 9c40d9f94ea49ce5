"""Adapter weights in their storage formats, as numpy arrays."""

import numpy as np
import numpy.typing as npt

from loramux_adapters.tensorfile import TensorInfo
from loramux_adapters.weights.dtypes import Array, decoded
from loramux_server.wire.weight_format import FORMATS, WeightFormat

Weights = npt.NDArray[np.float32] | npt.NDArray[np.uint16]
"""float32, or the bits of a 16-bit format."""
_NAMES = {form: name for name, form in FORMATS.items()}
_ITEMS = {form: np.dtype("<f4" if form is WeightFormat.FLOAT32 else "<u2") for form in WeightFormat}
"""The numpy dtype of each format, little-endian."""


def read_weights(tensor: TensorInfo, raw: bytes | memoryview, form: WeightFormat) -> Weights:
    """Return `tensor`, whose bytes are `raw`, in its own shape and in `form`.

    The result may share memory with `raw`.
    """
    values: Weights
    if FORMATS[tensor.dtype] is form:
        values = np.frombuffer(raw, _ITEMS[form])
    else:
        values = rounded(decoded(raw, tensor.dtype), form)
    return values.reshape(tensor.shape)


def widened(values: Weights, form: WeightFormat) -> Array:
    """Return `values`, which are stored in `form`, in float32."""
    return decoded(values.tobytes(), _NAMES[form]).reshape(values.shape)


def rounded(values: npt.NDArray[np.float32], form: WeightFormat) -> Weights:
    """Return finite `values` in `form`, rounded to nearest, ties to even."""
    if form is WeightFormat.FLOAT32:
        return values.copy()
    if form is WeightFormat.FLOAT16:
        with np.errstate(over="ignore"):  # overflows to infinity, which fails requests that hit it
            return values.astype(np.float16).view(np.uint16)
    bits = values.view(np.uint32)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    return ((bits + np.uint32(0x7FFF) + odd) >> np.uint32(16)).astype(np.uint16)
