"""A LoRA adapter as a list of low-rank changes: config and tensors, held against each other."""

from dataclasses import dataclass

from loramux_adapters.errors import PackageError, shown
from loramux_adapters.lora_config import LoraConfig
from loramux_adapters.peft_config import MAX_SCALE
from loramux_adapters.tensorfile import TensorInfo

_PREFIX = "base_model.model."
_KINDS = {".lora_A.weight": "A", ".lora_B.weight": "B"}


@dataclass(frozen=True, slots=True)
class LoraModule:
    """The low-rank change of one linear layer: y += scale * B(Ax)."""

    module: str
    """Name of the layer in the base model, such as `model.layers.0.self_attn.q_proj`."""
    scale: float
    a: TensorInfo
    """A, of shape [rank, in_features]."""
    b: TensorInfo
    """B, of shape [out_features, rank]."""

    @property
    def rank(self) -> int:
        """Number of rows of A and columns of B."""
        return self.a.shape[0]

    @property
    def in_features(self) -> int:
        """Width of the layer's input."""
        return self.a.shape[1]

    @property
    def out_features(self) -> int:
        """Width of the layer's output."""
        return self.b.shape[0]


def lora_modules(config: LoraConfig, tensors: dict[str, TensorInfo]) -> list[LoraModule]:
    """Return the changes that `tensors` hold, in the order of their modules' names.

    Raises:
        PackageError: A tensor is no part of a LoRA, lacks its partner, disagrees with its partner
            or with `config`.
    """
    halves: dict[str, dict[str, TensorInfo]] = {}
    for tensor in tensors.values():
        module, half = _split(tensor.name)
        halves.setdefault(module, {})[half] = tensor
    return [_join(config, module, found) for module, found in sorted(halves.items())]


def _split(name: str) -> tuple[str, str]:
    if not name.startswith(_PREFIX):
        raise PackageError(
            f"tensor {name} does not begin with '{_PREFIX}', as tensors saved by PEFT do"
        )
    for ending, half in _KINDS.items():
        if name.endswith(ending):
            return name.removeprefix(_PREFIX).removesuffix(ending), half
    raise PackageError(
        f"tensor {name} is refused: only '.lora_A.weight' and '.lora_B.weight' are served",
        "UNSUPPORTED_ADAPTER_FEATURE",
    )


def _join(config: LoraConfig, module: str, halves: dict[str, TensorInfo]) -> LoraModule:
    for half, partner in (("A", "B"), ("B", "A")):
        if half not in halves:
            raise PackageError(f"module {module} has lora_{partner} but no lora_{half}")
    a, b = halves["A"], halves["B"]
    for tensor in (a, b):
        if len(tensor.shape) != 2:
            raise PackageError(f"tensor {tensor.name}: shape {shown(tensor.shape)} is not 2-D")
    rank = a.shape[0]
    if b.shape[1] != rank:
        raise PackageError(f"module {module}: lora_A has rank {rank}, lora_B has rank {b.shape[1]}")
    if rank != config.rank_of(module):
        raise PackageError(
            f"module {module}: the tensors have rank {rank}, "
            f"adapter_config.json says {config.rank_of(module)} (r or rank_pattern)",
            "INVALID_ADAPTER_CONFIG",
        )
    if not config.targets(module):
        raise PackageError(
            f"module {module} has tensors but adapter_config.json does not target it "
            "(target_modules, exclude_modules, layers_to_transform)",
            "INVALID_ADAPTER_CONFIG",
        )
    scale = config.scale_of(module)
    if scale > MAX_SCALE:
        raise PackageError(
            f"module {module}: scale {scale:g} from lora_alpha and r is above {MAX_SCALE:g}",
            "INVALID_ADAPTER_CONFIG",
        )
    return LoraModule(module, scale, a, b)
