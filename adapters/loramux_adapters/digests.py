"""Digests of single tensors: they show where a package was changed, and are what is signed."""

import hashlib
from collections.abc import Mapping

from loramux_adapters.errors import PackageError, shown
from loramux_adapters.tensorfile import ReadTensor, TensorInfo

UNKNOWN_DIGEST = f"sha256:{'0' * 64}"
"""A placeholder of the same length as any digest."""


def tensor_digest(tensor: TensorInfo, read: ReadTensor) -> str:
    """Return the SHA-256 of dtype and shape, such as `F32[2,4]`, followed by the tensor's bytes."""
    sha256 = hashlib.sha256(f"{tensor.dtype}[{','.join(map(str, tensor.shape))}]".encode())
    for chunk in read(tensor):
        sha256.update(chunk)
    return f"sha256:{sha256.hexdigest()}"


def tensor_digests(tensors: Mapping[str, TensorInfo], read: ReadTensor) -> dict[str, str]:
    """Return the digest of each of `tensors`."""
    return {name: tensor_digest(tensor, read) for name, tensor in tensors.items()}


def check_digests(
    noted: Mapping[str, object], tensors: Mapping[str, TensorInfo], read: ReadTensor
) -> None:
    """Check `tensors` against the digests `noted` in a manifest.

    Raises:
        PackageError: A tensor is missing, not noted, or has another digest.
    """
    for name in sorted(noted.keys() ^ tensors.keys()):
        fault = "is missing" if name in noted else "has no digest in the manifest"
        raise PackageError(f"tensor {shown(name)} {fault}")
    for name, tensor in tensors.items():
        found = tensor_digest(tensor, read)
        if found != noted[name]:
            raise PackageError(
                f"tensor {name} has digest {found}, but the manifest has {shown(noted[name])}: the "
                "tensor was changed after packing"
            )
