"""Verification of a package: every check that needs no server."""

from dataclasses import dataclass, replace
from typing import BinaryIO, cast

import numpy as np

from loramux_adapters.base import BaseFolder
from loramux_adapters.base_identity import BaseIdentity
from loramux_adapters.contents import Contents, EditKind
from loramux_adapters.digests import check_digests
from loramux_adapters.errors import PackageError
from loramux_adapters.fingerprint import check_fingerprint
from loramux_adapters.fit import check_fit
from loramux_adapters.head import FEATURES
from loramux_adapters.lora import is_outer
from loramux_adapters.package import Package, digest_of
from loramux_adapters.tensorfile import tensor_reader
from loramux_adapters.weights.dtypes import decoded


@dataclass(frozen=True, slots=True)
class Verified:
    """A check that passed."""

    check: str
    found: str


def verify(
    file: BinaryIO, package: Package, *, digest: str | None = None, base: BaseFolder | None = None
) -> list[Verified]:
    """Check `package`, which is open as `file`, and return the checks that were made.

    Args:
        file: The package.
        package: The parsed package.
        digest: The expected digest.
        base: The base model that it should fit.

    Raises:
        PackageError: A check fails; the message says which and why.
    """
    found = digest_of(file)
    if digest is not None and found != digest:
        raise PackageError(f"the package has digest {found}; expected {digest}")
    num_tensors, num_stored = len(package.tensors), len(package.file.tensors)
    modules, virtual = package.contents.changed_modules, package.virtual
    holds = f"{virtual.count} virtual tokens" if virtual else f"{len(modules)} modules"
    in_stacks = f" in {num_stored}" if num_stored != num_tensors else ""
    done = [
        Verified("structure", f"{holds}, {num_tensors} tensors{in_stacks}"),
        Verified("digest", found),
    ]
    if "tensors" in package.notes:
        noted = cast(dict[str, object], package.notes["tensors"])
        check_digests(noted, package.file.tensors, tensor_reader(file, package.file.data_start))
        done.append(Verified("tensor digests", f"all {num_stored} match the manifest"))
    _check_finite(file, package)
    done.append(Verified("finite", f"all {num_tensors} tensors"))
    if base is not None:
        contents = _known(package.named_for(base.tensors).contents, base)
        check_fit(
            contents, base.features(contents), base.parameters(contents), base.token,
            base.experts(contents),
        )  # fmt: skip
        done.append(Verified("base", f"fits the {base.model_type} model in {base.path}"))
        if "base" in package.notes:
            check_fingerprint(cast(dict[str, object], package.notes["base"]), base)
            done.append(Verified("base fingerprint", "matches the manifest"))
        elif other := BaseIdentity(str(base.path.resolve())).other(package):
            done.append(Verified("base name", f"warning: {other}"))
    return done


def _known(contents: Contents, base: BaseFolder) -> Contents:
    """Return `contents` without changes of modules outside the layers that `base` does not have.

    The parts of a head are defined by transformers' class for the task, not by files of the base.
    An adapter for embeddings may change a pooler, which checkpoints of masked language models lack.
    """

    def is_unknown(module: str, parameter: str) -> bool:
        if contents.head is None and not (contents.task == FEATURES and _is_pooler(module)):
            return False
        return is_outer(module) and base.parameter(f"{module}.{parameter}") is None

    return replace(
        contents,
        modules=[each for each in contents.modules if not is_unknown(each.module, "weight")],
        edits=[
            each
            for each in contents.edits
            if not is_unknown(each.module, each.parameter or _tested(each.kind))
        ],
    )


def _tested(kind: EditKind) -> str:
    return "bias" if kind is EditKind.BIAS else "weight"


def _is_pooler(module: str) -> bool:
    return "pooler" in module.split(".")


def _check_finite(file: BinaryIO, package: Package) -> None:
    read = tensor_reader(file, package.file.data_start)
    for tensor in package.tensors.values():
        if not np.isfinite(decoded(b"".join(read(tensor)), tensor.dtype)).all():
            raise PackageError(
                f"tensor {tensor.name}: a weight is NaN or infinite", "ADAPTER_NOT_FINITE"
            )
