"""Fingerprint of a base model, which identifies it without reading all of its weights.

A package notes the fingerprint of the model that it was made for as `base`. Only the first bytes of
each weight count: they tell a model from its fine-tunes, and are read in a moment where all of them
would take minutes.
"""

import hashlib
from collections.abc import Iterable, Mapping

from loramux_adapters.base import BaseFolder
from loramux_adapters.errors import PackageError, shown

SAMPLE_BYTES = 4096
TOKENIZER_FILE = "tokenizer.json"


def fingerprint(base: BaseFolder) -> dict[str, str]:
    """Return the model type of `base`, and digests of its shapes, first weights and tokenizer.

    The distribution of weights over files does not matter; their dtype does.

    Raises:
        OSError: A file cannot be read.
    """
    tensors = sorted(base.tensors.items())
    found = {
        "model_type": base.model_type,
        "shapes": _digest(f"{name} {list(each.shape)}\n".encode() for name, each in tensors),
        "weights": _digest(_samples(base)),
    }
    tokenizer = base.path / TOKENIZER_FILE
    if tokenizer.is_file():
        found["tokenizer"] = _digest([tokenizer.read_bytes()])
    return found


def check_fingerprint(noted: Mapping[str, object], base: BaseFolder) -> None:
    """Check that `base` has the fingerprint `noted`; parts that only one of them has are ignored.

    Raises:
        PackageError: A part differs; the message names it.
        OSError: A file cannot be read.
    """
    found = fingerprint(base)
    for part in (part for part in found if part in noted):
        if noted[part] != found[part]:
            raise PackageError(
                f"the package was made for another base model: {part} is {shown(noted[part])} in "
                f"its manifest, but {found[part]} in {base.path}",
                "ADAPTER_BASE_MISMATCH",
            )


def _samples(base: BaseFolder) -> Iterable[bytes]:
    for name, tensor in sorted(base.tensors.items()):
        yield f"{name} {tensor.dtype}\n".encode()
        with (base.path / tensor.file).open("rb") as file:
            file.seek(tensor.offset)
            yield file.read(min(tensor.num_bytes, SAMPLE_BYTES))


def _digest(chunks: Iterable[bytes]) -> str:
    sha256 = hashlib.sha256()
    for chunk in chunks:
        sha256.update(chunk)
    return f"sha256:{sha256.hexdigest()}"
