"""A LoRA adapter as a list of changes: config and tensors, held against each other."""

from collections.abc import Mapping

from loramux_adapters.contents import Contents, Edit, EditKind
from loramux_adapters.errors import PackageError, shown
from loramux_adapters.fields import split_name
from loramux_adapters.lora import LoraModule
from loramux_adapters.lora_config import Bias, LoraConfig
from loramux_adapters.peft_config import MAX_SCALE
from loramux_adapters.tensorfile import TensorInfo

_A, _B, _ADDED = ".lora_A.weight", ".lora_B.weight", ".lora_B.bias"
_MAGNITUDES = (".lora_magnitude_vector", ".lora_magnitude_vector.weight")
_BIASES = (".base_layer.bias", ".bias")
_ENDINGS = (_A, _B, _ADDED, *_MAGNITUDES, *_BIASES)
_SERVED = (
    "'.lora_A.weight', '.lora_B.weight', '.lora_B.bias', '.lora_magnitude_vector' and biases are "
    "served of a LoRA adapter"
)


def lora_contents(config: LoraConfig, tensors: Mapping[str, TensorInfo]) -> Contents:
    """Return the changes that `tensors` hold, in the order of their modules' names.

    Raises:
        PackageError: A tensor is no part of a LoRA, lacks its partner, disagrees with its partner
            or with `config`.
    """
    found: dict[str, dict[str, TensorInfo]] = {}
    for tensor in tensors.values():
        module, ending = split_name(tensor.name, _ENDINGS, _SERVED)
        found.setdefault(module, {})[ending] = tensor
    modules: list[LoraModule] = []
    edits: list[Edit] = []
    for module, parts in sorted(found.items()):
        if _A in parts or _B in parts:
            modules.append(_join(config, module, parts))
        edits += _edits(config, module, parts)
    return Contents(modules, edits)


def _join(config: LoraConfig, module: str, parts: dict[str, TensorInfo]) -> LoraModule:
    for half, partner in (("A", "B"), ("B", "A")):
        if f".lora_{half}.weight" not in parts:
            raise PackageError(f"module {module} has lora_{partner} but no lora_{half}")
    a, b = parts[_A], parts[_B]
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


def _edits(config: LoraConfig, module: str, parts: dict[str, TensorInfo]) -> list[Edit]:
    """Return what `parts` say of `module` beside A and B, all that the config promises."""
    is_target = _A in parts
    magnitude = [parts[ending] for ending in _MAGNITUDES if ending in parts]
    biases = [parts[ending] for ending in _BIASES if ending in parts]
    added = [parts[_ADDED]] if _ADDED in parts else []
    for tensors, field, is_on, needs_all in (
        (magnitude, "use_dora", config.use_dora, True),
        (added, "lora_bias", config.lora_bias, True),
        (biases, "bias", config.bias is not Bias.NONE, False),
    ):
        if len(tensors) > 1:
            raise PackageError(f"tensors {tensors[0].name} and {tensors[1].name} say the same")
        if tensors and (not is_on or (needs_all and not is_target)):
            why = f"{field} of adapter_config.json is off" if not is_on else "has no lora_A"
            raise PackageError(f"tensor {tensors[0].name}: {why}", "INVALID_ADAPTER_CONFIG")
        if is_on and needs_all and is_target and not tensors:
            raise PackageError(
                f"module {module} has no tensor for {field}, which adapter_config.json switches on",
                "INVALID_ADAPTER_CONFIG",
            )
    found = [(magnitude, EditKind.MAGNITUDE), (added, EditKind.ADDED_BIAS), (biases, EditKind.BIAS)]
    return [Edit(module, kind, _vector(tensor)) for tensors, kind in found for tensor in tensors]


def _vector(tensor: TensorInfo) -> TensorInfo:
    if len(tensor.shape) != 1:
        raise PackageError(f"tensor {tensor.name}: shape {shown(tensor.shape)} is not 1-D")
    return tensor
