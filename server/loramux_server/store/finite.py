"""Refusing packages with weights that are not finite, or too large to compute with."""

from typing import BinaryIO

import numpy as np

from loramux_adapters import PackageError
from loramux_adapters.contents import Contents
from loramux_adapters.tensorfile import TensorInfo
from loramux_server.lora.weights import read_weights
from loramux_server.wire.weight_format import WeightFormat

MAX_WEIGHT = 1e30
"""Above this, a product with an activation may overflow float32."""


def check_finite(file: BinaryIO, data_start: int, contents: Contents) -> None:
    """Demand that all weights of `contents` are finite and at most MAX_WEIGHT.

    Args:
        file: The package; its tensors are read one at a time.
        data_start: Offset of the tensor data in bytes.
        contents: The tensors to read.

    Raises:
        PackageError: A weight is NaN, infinite or too large.
    """
    for change in contents.low_rank:
        largest = max(_largest(file, data_start, tensor) for tensor in (change.a, change.b))
        if not largest * change.scale <= MAX_WEIGHT:
            raise PackageError(
                f"module {change.name}: a weight times its scale is {largest * change.scale:g}, "
                f"above {MAX_WEIGHT:g}",
                "ADAPTER_NOT_FINITE",
            )
    for tensor in contents.other_tensors:
        largest = _largest(file, data_start, tensor)
        if not largest <= MAX_WEIGHT:
            raise PackageError(
                f"tensor {tensor.name}: a value is {largest:g}, above {MAX_WEIGHT:g}",
                "ADAPTER_NOT_FINITE",
            )


def _largest(file: BinaryIO, data_start: int, tensor: TensorInfo) -> float:
    file.seek(data_start + tensor.offset)
    values = read_weights(tensor, file.read(tensor.num_bytes), WeightFormat.FLOAT32)
    largest = float(np.abs(values).max())
    # Comparisons with NaN are false, so this also catches NaN.
    if not largest < np.inf:
        raise PackageError(f"tensor {tensor.name} holds NaN or infinity", "ADAPTER_NOT_FINITE")
    return largest
