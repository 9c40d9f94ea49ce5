"""Low-rank updates of mixture-of-experts layers, which route each token to a few experts.

PEFT adapts all experts of a layer with one pair of factors where transformers keeps their weights
in one parameter (`target_parameters`), and each expert separately where it is a module, as before
transformers 5. Source of the shapes: `ParamWrapper` and `transformers_weight_conversion` of PEFT
0.21.

Legend: E experts, R rank, K input width, N output width.
"""

import enum
import re
from collections import Counter
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, replace

from loramux_adapters.errors import PackageError
from loramux_adapters.lora import LoraModule
from loramux_adapters.lora_config import LoraConfig
from loramux_adapters.tensorfile import TensorInfo

_INSIDE = ".base_layer"
"""Suffix that PEFT adds to the name of a module for each further wrapper around it."""
_ALONE = re.compile(
    r"(?P<module>.+\.experts)\.(?P<number>0|[1-9]\d{0,8})\."
    r"(?P<projection>gate_proj|up_proj|down_proj|w1|w2|w3)"
)
_OLD_NAMES = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
_OLD_PARENT, _PARENT = ".block_sparse_moe.experts", ".mlp.experts"
"""Name of Mixtral's experts in transformers 4, and today."""
_OLD_ROUTER, _ROUTERS = ".block_sparse_moe.gate", (".mlp.gate", ".mlp.router")
"""Likewise the name of the router; the last is PhiMoE's."""
_GRANITE = ".block_sparse_moe"
"""Granite's name for a mixture of experts; its parts have other names in the checkpoint."""


class Projection(enum.StrEnum):
    """A weight matrix of an expert, in the order of an expert's parameters."""

    GATE_UP = "gate_up_proj"
    """The next two, fused."""
    GATE = "gate_proj"
    UP = "up_proj"
    DOWN = "down_proj"


ROUTER_WEIGHTS = ("gate.weight", "router.weight")
"""Weights of routers."""
PARAMETERS = (Projection.GATE_UP, Projection.UP, Projection.DOWN)
"""Matrices that can be one parameter for all experts, in the order of an expert's parameters."""


@dataclass(frozen=True, slots=True)
class ExpertLora:
    """The low-rank update of one matrix of one or all experts: y += scale * B(Ax)."""

    module: str
    """Name of the experts in the base model, such as `model.layers.0.mlp.experts`."""
    projection: Projection
    scale: float
    a: TensorInfo
    """[E * R, K]: the experts one after the other."""
    b: TensorInfo
    """[N, R * E]: for each rank, the experts one after the other."""
    num_experts: int
    number: int | None = None
    """Index of the expert that is changed; None for all."""
    num_beside: int = 0
    """If one expert is changed and the base is known, how many others the layer has."""

    @property
    def name(self) -> str:
        """Name of the changed matrix."""
        number = "" if self.number is None else f".{self.number}"
        return f"{self.module}{number}.{self.projection}"

    @property
    def rank(self) -> int:
        """Rank of each expert's update: rows of A, columns of B."""
        return self.a.shape[0] // self.num_experts

    @property
    def features(self) -> tuple[int, int]:
        """(in_features, out_features) of an expert's matrix."""
        return self.a.shape[1], self.b.shape[0]


@dataclass(frozen=True, slots=True)
class ExpertsShape:
    """Shape of the experts of one layer of a base model."""

    count: int
    width: int
    """Hidden size of the model."""
    inner: int
    """Intermediate size of an expert."""
    is_gated: bool = True
    """Whether they are gated MLPs, with a gate and an up projection."""
    has_halves: bool = True
    """Whether the gate's outputs come before those of the up projection, not interleaved."""
    router: str = ""
    """Name of the router; empty if it cannot be changed."""

    def features(self, projection: Projection) -> tuple[int, int] | None:
        """Return (in_features, out_features) of a matrix; None if it cannot be changed."""
        if projection is Projection.DOWN:
            return self.inner, self.width
        if projection is Projection.GATE_UP:
            return (self.width, 2 * self.inner) if self.is_gated else None
        is_there = self.has_halves if self.is_gated else projection is Projection.UP
        return (self.width, self.inner) if is_there else None


def parameters_of(config: LoraConfig, path: str) -> tuple[str, list[Projection], int]:
    """Return the module of `path`, its targeted parameters, and the depth of the wrapper.

    PEFT wraps a module once per targeted parameter, the first innermost; depth 0 is the outermost.
    """
    module, depth = path, 0
    while module.endswith(_INSIDE):
        module, depth = module.removesuffix(_INSIDE), depth + 1
    found = [each for each in PARAMETERS if config.targets_parameter(f"{module}.{each}")]
    return module, found, depth


def expert_lora(config: LoraConfig, path: str, a: TensorInfo, b: TensorInfo) -> ExpertLora:
    """Return the update of an experts' parameter whose factors PEFT saved under `path`.

    Raises:
        PackageError: The config does not name the parameter, or has another rank.
    """
    module, found, depth = parameters_of(config, path)
    if depth >= len(found):
        raise PackageError(
            f"module {path}: it has factors for {depth + 1} parameters of {module}, but "
            f"target_parameters of adapter_config.json names {len(found)}",
            "INVALID_ADAPTER_CONFIG",
        )
    projection = found[len(found) - 1 - depth]
    name = f"{module}.{projection}"
    rank, rows = config.rank_of(name), a.shape[0]
    if rows % rank or not rows:
        raise PackageError(
            f"module {name}: lora_A has {rows} rows, which is not a multiple of the rank {rank} "
            "of adapter_config.json (r or rank_pattern)",
            "INVALID_ADAPTER_CONFIG",
        )
    return ExpertLora(module, projection, config.scale_of(name), a, b, rows // rank)


def check_whole(config: LoraConfig, changes: Iterable[ExpertLora]) -> None:
    """Check that experts have factors for all parameters that the config names.

    Raises:
        PackageError: Factors of a parameter are missing.
    """
    found: dict[str, set[Projection]] = {}
    for change in changes:
        found.setdefault(change.module, set()).add(change.projection)
    for module, there in found.items():
        for wanted in parameters_of(config, module)[1]:
            if wanted not in there:
                raise PackageError(
                    f"module {module} has no factors for {wanted}, which target_parameters of "
                    "adapter_config.json names",
                    "INVALID_ADAPTER_CONFIG",
                )


def split_experts(
    modules: Iterable[LoraModule], layers: Container[str], experts: Mapping[str, ExpertsShape]
) -> tuple[list[LoraModule], list[LoraModule], list[ExpertLora]]:
    """Split `modules` into updates of layers, of routers, and of single experts.

    Args:
        modules: Low-rank updates under the names that they were trained with.
        layers: Names of the layers of the base.
        experts: Experts of the base that have their weights in one parameter, by name.

    Raises:
        PackageError: Two of them, under an old and a new name, change the same matrix.
    """
    names = {shape.router for shape in experts.values()}
    kept: list[LoraModule] = []
    routers: list[LoraModule] = []
    found: list[ExpertLora] = []
    for module in modules:
        router = _existing_name(module.module, names, _OLD_ROUTER, *_ROUTERS)
        if router:
            routers.append(replace(module, module=router))
            continue
        match = None if module.module in layers else _ALONE.fullmatch(module.module)
        name = _existing_name(match["module"], experts, _OLD_PARENT, _PARENT) if match else None
        if match is None or name is None:
            kept.append(module)
            continue
        projection = Projection(_OLD_NAMES.get(match["projection"], match["projection"]))
        number, num_beside = int(match["number"]), experts[name].count - 1
        found.append(
            ExpertLora(name, projection, module.scale, module.a, module.b, 1, number, num_beside)
        )
    _check_apart([each.name for each in routers] + [each.name for each in found])
    return kept, routers, found


def names_of_experts(module: str) -> list[str]:
    """Return the names that the experts `module` may have in a checkpoint with one module each."""
    old = [module.removesuffix(_PARENT) + _OLD_PARENT] if module.endswith(_PARENT) else []
    return [module, *old]


def names_together(module: str) -> list[tuple[str, str]]:
    """Return pairs of names that the input and output weights of all experts may have."""
    own = (f"{module}.{Projection.GATE_UP}", f"{module}.{Projection.DOWN}")
    if not module.endswith(f"{_GRANITE}.experts"):
        return [own]
    parent = module.removesuffix(".experts")
    return [own, (f"{parent}.input_linear.weight", f"{parent}.output_linear.weight")]


def names_of_parameter(name: str) -> list[str]:
    """Return the names that a parameter, such as a router's, may have in a checkpoint."""
    saved = ((end, _OLD_ROUTER) for end in _ROUTERS)
    ends = (*saved, (f"{_GRANITE}.router", f"{_GRANITE}.router.layer"))
    weights = ((f"{end}.weight", f"{other}.weight") for end, other in ends)
    return [name, *(name.removesuffix(end) + other for end, other in weights if name.endswith(end))]


def check_experts(change: ExpertLora, shape: ExpertsShape | None) -> None:
    """Check that `change` fits experts of `shape`, which is None if the base has no such experts.

    Raises:
        PackageError: It does not fit.
    """
    wanted = shape.features(change.projection) if shape else None
    if shape is None or wanted is None:
        raise PackageError(
            f"module {change.name}: the base model has no such adaptable experts",
            "ADAPTER_BASE_MISMATCH",
        )
    if change.number is None and change.num_experts != shape.count:
        raise PackageError(
            f"module {change.name}: the adapter changes {change.num_experts} experts, but the base "
            f"model has {shape.count}",
            "ADAPTER_BASE_MISMATCH",
        )
    if change.number is not None and change.number >= shape.count:
        raise PackageError(
            f"module {change.name}: the base model has experts from 0 to {shape.count - 1}",
            "ADAPTER_BASE_MISMATCH",
        )
    if change.features != wanted:
        raise PackageError(
            f"module {change.name}: the adapter maps {change.features[0]} to {change.features[1]} "
            f"features, but the base model maps {wanted[0]} to {wanted[1]}",
            "ADAPTER_BASE_MISMATCH",
        )


def _check_apart(names: Iterable[str]) -> None:
    for name, count in Counter(names).items():
        if count > 1:
            raise PackageError(
                f"module {name}: the adapter has two updates of it", "INVALID_ADAPTER_CONFIG"
            )


def _existing_name(module: str, there: Container[str], old: str, *new: str) -> str | None:
    """Return the name of `module` in `there`, which may have one of the ends `new` for `old`."""
    names = [module]
    if module.endswith(old):
        names += [module.removesuffix(old) + each for each in new]
    return next((name for name in names if name in there), None)
