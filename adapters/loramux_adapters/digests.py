"""Digests of single tensors, which tell where a package was changed and what a signature is for."""

import hashlib
from collections.abc import Mapping

from loramux_adapters.errors import PackageError, shown
from loramux_adapters.tensorfile import ReadTensor, TensorInfo

UNKNOWN_DIGEST = f"sha256:{'0' * 64}"
"""As long as any."""


def tensor_digest(tensor: TensorInfo, read: ReadTensor) -> str:
    """Return the digest of dtype and shape, such as `F32[2,4]`, and the bytes after them."""
    sha256 = hashlib.sha256(f"{tensor.dtype}[{','.join(map(str, tensor.shape))}]".encode())
    for piece in read(tensor):
        sha256.update(piece)
    return f"sha256:{sha256.hexdigest()}"


def tensor_digests(tensors: Mapping[str, TensorInfo], read: ReadTensor) -> dict[str, str]:
    """Return the digest of each of `tensors`."""
    return {name: tensor_digest(tensor, read) for name, tensor in tensors.items()}


def check_digests(
    noted: Mapping[str, object], tensors: Mapping[str, TensorInfo], read: ReadTensor
) -> None:
    """Demand that `tensors` are those that the digests `noted` name.

    Raises:
        PackageError: A tensor is missing, added or not the noted one.
    """
    for name in sorted(noted.keys() ^ tensors.keys()):
        fault = "is missing" if name in noted else "has no digest in the manifest"
        raise PackageError(f"tensor {shown(name)} {fault}")
    for name, tensor in tensors.items():
        found = tensor_digest(tensor, read)
        if found != noted[name]:
            raise PackageError(
                f"tensor {name} has digest {found}, the manifest says {shown(noted[name])}: it is "
                "not the tensor that was packed"
            )
