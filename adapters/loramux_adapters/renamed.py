"""Packing of LoRA factors from other tools under PEFT's names, with unchanged bytes."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import BinaryIO, TypeVar

from loramux_adapters.errors import PackageError, shown
from loramux_adapters.fields import PREFIX
from loramux_adapters.packing import Output, write_package
from loramux_adapters.tensorfile import TensorFile, TensorInfo, tensor_reader

N = TypeVar("N", int, float)


@dataclass(frozen=True, slots=True)
class LoraFactors:
    """The factors of one layer's update, and its alpha: it adds alpha / rank * B A."""

    a: TensorInfo
    b: TensorInfo
    alpha: float

    @property
    def rank(self) -> int:
        """Number of rows of A."""
        return self.a.shape[0]


def write_renamed(
    modules: Mapping[str, LoraFactors],
    file: BinaryIO,
    header: TensorFile,
    output: Output,
    *,
    notes: Mapping[str, object],
) -> None:
    """Write a package of `modules`, by layer name, whose data are in `file`.

    Raises:
        PackageError: They are not an adapter that can be served.
    """
    tensors: dict[str, TensorInfo] = {}
    old: dict[str, TensorInfo] = {}
    for module, factors in modules.items():
        for letter, tensor in (("A", factors.a), ("B", factors.b)):
            if len(tensor.shape) != 2 or 0 in tensor.shape:
                raise PackageError(f"tensor {tensor.name}: shape {shown(tensor.shape)} is not 2-D")
            name = f"{PREFIX}{module}.lora_{letter}.weight"
            tensors[name] = replace(tensor, name=name)
            old[name] = tensor
    read = tensor_reader(file, header.data_start)
    write_package(
        _config(modules), tensors, lambda tensor: read(old[tensor.name]), output, notes=notes
    )


def _config(modules: Mapping[str, LoraFactors]) -> dict[str, object]:
    """Return the config that PEFT would have saved."""
    ranks = {module: factors.rank for module, factors in modules.items()}
    alphas = {module: factors.alpha for module, factors in modules.items()}
    rank, alpha = _most_common(ranks), _most_common(alphas)
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": _plain(alpha),
        "target_modules": sorted({module.rpartition(".")[2] for module in modules}),
        # Longer names first, because a shorter one may be a suffix of a longer one.
        "rank_pattern": {m: r for m, r in _longest_first(ranks) if r != rank},
        "alpha_pattern": {m: _plain(a) for m, a in _longest_first(alphas) if a != alpha},
        "bias": "none",
        "inference_mode": True,
    }


def _most_common(values: Mapping[str, N]) -> N:
    counts = Counter(values.values())
    return max(counts, key=lambda value: (counts[value], value))


def _longest_first(values: Mapping[str, N]) -> list[tuple[str, N]]:
    return sorted(values.items(), key=lambda entry: (-len(entry[0]), entry[0]))


def _plain(alpha: float) -> int | float:
    return int(alpha) if alpha.is_integer() else alpha
