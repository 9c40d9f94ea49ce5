"""Contents of a LoRA adapter: its tensors, checked against its config."""

from collections.abc import Mapping

from loramux_adapters.contents import Contents, Edit, EditKind
from loramux_adapters.errors import PackageError, shown
from loramux_adapters.experts import ExpertLora, check_whole, expert_lora, parameters_of
from loramux_adapters.fields import path_of
from loramux_adapters.lora import LoraModule, is_outer
from loramux_adapters.lora_config import Bias, LoraConfig
from loramux_adapters.peft_config import MAX_SCALE
from loramux_adapters.saved import check_saved_alone, is_inside, saved_edit, without_repeats
from loramux_adapters.targets import not_targeted
from loramux_adapters.tensorfile import TensorInfo
from loramux_adapters.trainable_tokens import ROWS, tokens_edit

_A, _B, _ADDED = ".lora_A.weight", ".lora_B.weight", ".lora_B.bias"
_EMBEDDING_A, _EMBEDDING_B = ".lora_embedding_A", ".lora_embedding_B"
_MAGNITUDES = (".lora_magnitude_vector", ".lora_magnitude_vector.weight")
_BIASES = (".base_layer.bias", ".bias")
_ENDINGS = (_A, _B, _ADDED, _EMBEDDING_A, _EMBEDDING_B, *_MAGNITUDES, *_BIASES, ROWS)
_HALVES = ((_A, _B), (_EMBEDDING_A, _EMBEDDING_B))
_SERVED = (
    "'.lora_A.weight', '.lora_B.weight', '.lora_B.bias', '.lora_embedding_A', "
    "'.lora_embedding_B', '.lora_magnitude_vector', '.token_adapter.trainable_tokens_delta' and "
    "biases"
)


def lora_contents(config: LoraConfig, tensors: Mapping[str, TensorInfo]) -> Contents:
    """Return the changes in `tensors`, sorted by module name.

    Raises:
        PackageError: A tensor does not belong to a LoRA, lacks its counterpart, or disagrees with
            that or with `config`.
    """
    found: dict[str, dict[str, TensorInfo]] = {}
    whole: list[Edit] = []
    for tensor in without_repeats(tensors, config.saved):
        path = path_of(tensor.name)
        ending = next((ending for ending in _ENDINGS if path.endswith(ending)), None)
        if ending is None or (ending == ".bias" and _is_saved(config, tensor)):
            whole.append(saved_edit(tensor, config.saved, _SERVED))
        else:
            found.setdefault(path.removesuffix(ending), {})[ending] = tensor
    modules: list[LoraModule] = []
    experts: list[ExpertLora] = []
    edits: list[Edit] = []
    for module, parts in sorted(found.items()):
        if config.parameters and not config.targets(module) and parameters_of(config, module)[1]:
            experts.append(_of_experts(config, module, parts))
            continue
        for a, b in _HALVES:
            if a in parts or b in parts:
                modules.append(_join(config, module, parts, a, b))
        edits += _edits(config, module, parts)
    check_whole(config, experts)
    _check_tokens(config, edits)
    check_saved_alone(whole, found.keys())
    edits += sorted(whole, key=lambda edit: edit.tensor.name)
    _check_activated(config, modules, edits)
    return Contents(modules, experts, edits, invocation=config.invocation)


def _check_activated(config: LoraConfig, modules: list[LoraModule], edits: list[Edit]) -> None:
    """Check that an aLoRA has only changes that can begin in the middle of a prompt."""
    if not config.invocation:
        return
    if config.parameters:
        raise PackageError(
            "adapter_config.json: target_parameters is not supported with alora_invocation_tokens",
            "UNSUPPORTED_ADAPTER_FEATURE",
        )
    for edit in edits:
        if edit.kind is not EditKind.ADDED_BIAS:
            raise PackageError(
                f"tensor {edit.tensor.name}: a {edit.kind} is not supported with "
                "alora_invocation_tokens, because PEFT would apply it to the whole prompt",
                "UNSUPPORTED_ADAPTER_FEATURE",
            )
    for module in modules:
        if module.is_outer:
            raise PackageError(
                f"module {module.module}: with alora_invocation_tokens, only layers between "
                "embeddings and output are supported",
                "UNSUPPORTED_ADAPTER_FEATURE",
            )


def _is_saved(config: LoraConfig, tensor: TensorInfo) -> bool:
    """Return whether `tensor` is the bias of a module that was trained in full."""
    return is_inside(path_of(tensor.name).rpartition(".")[0], config.saved)


def _of_experts(config: LoraConfig, module: str, parts: dict[str, TensorInfo]) -> ExpertLora:
    """Return the update of an experts' parameter with the factors `parts`."""
    others = [tensor for ending, tensor in parts.items() if ending not in (_A, _B)]
    if others:
        raise PackageError(
            f"tensor {others[0].name} is not supported; for experts, expected '{_A}' or '{_B}'",
            "UNSUPPORTED_ADAPTER_FEATURE",
        )
    a, b = _factors(module, parts, _A, _B)
    change = expert_lora(config, module, a, b)
    _check_scale(change.name, change.scale)
    return change


def _factors(
    module: str, parts: dict[str, TensorInfo], a_ending: str, b_ending: str
) -> tuple[TensorInfo, TensorInfo]:
    """Return A and B of `module`, checked to be matrices of the same rank."""
    for ending, partner in ((a_ending, b_ending), (b_ending, a_ending)):
        if ending not in parts:
            half, other = (name.split(".")[1] for name in (ending, partner))
            raise PackageError(f"module {module} has {other} but no {half}")
    a, b = parts[a_ending], parts[b_ending]
    for tensor in (a, b):
        if len(tensor.shape) != 2:
            raise PackageError(f"tensor {tensor.name}: shape {shown(tensor.shape)} is not 2-D")
    if b.shape[1] != a.shape[0]:
        raise PackageError(
            f"module {module}: lora_A has rank {a.shape[0]}, lora_B has rank {b.shape[1]}"
        )
    return a, b


def _join(
    config: LoraConfig, module: str, parts: dict[str, TensorInfo], a_ending: str, b_ending: str
) -> LoraModule:
    a, b = _factors(module, parts, a_ending, b_ending)
    rank = a.shape[0]
    name = config.key_of(module)
    if rank != config.rank_of(name):
        raise PackageError(
            f"module {module}: the tensors have rank {rank}, but "
            f"adapter_config.json has {config.rank_of(name)} (r or rank_pattern)",
            "INVALID_ADAPTER_CONFIG",
        )
    is_target = name != module or config.targets(module)
    if not is_target and not (config.ensures_tying and is_outer(module)):
        raise not_targeted(module, "layers_to_transform")
    scale = config.scale_of(name)
    _check_scale(module, scale)
    return LoraModule(module, scale, a, b, is_embedding=a_ending == _EMBEDDING_A)


def _check_scale(module: str, scale: float) -> None:
    if scale > MAX_SCALE:
        raise PackageError(
            f"module {module}: scale {scale:g} from lora_alpha and r is above {MAX_SCALE:g}",
            "INVALID_ADAPTER_CONFIG",
        )


def _edits(config: LoraConfig, module: str, parts: dict[str, TensorInfo]) -> list[Edit]:
    """Return the changes of `module` beside A and B, checked to be complete by the config."""
    is_target = _A in parts or _EMBEDDING_A in parts
    magnitude = [parts[ending] for ending in _MAGNITUDES if ending in parts]
    biases = [parts[ending] for ending in _BIASES if ending in parts]
    added = [parts[_ADDED]] if _ADDED in parts else []
    # PEFT saves the bias of an adapted embedding or output layer with its weight.
    has_bias = config.bias is not Bias.NONE or (is_outer(module) and ".base_layer.bias" in parts)
    for tensors, field, is_on, needs_all in (
        (magnitude, "use_dora", config.use_dora, True),
        (added, "lora_bias", config.lora_bias, True),
        (biases, "bias", has_bias, False),
    ):
        if len(tensors) > 1:
            raise PackageError(f"tensors {tensors[0].name} and {tensors[1].name} are duplicates")
        if tensors and (not is_on or (needs_all and not is_target)):
            why = f"{field} of adapter_config.json is off" if not is_on else "there is no lora_A"
            raise PackageError(f"tensor {tensors[0].name}: {why}", "INVALID_ADAPTER_CONFIG")
        if is_on and needs_all and is_target and not tensors:
            raise PackageError(
                f"module {module} has no tensor for {field}, which adapter_config.json turns on",
                "INVALID_ADAPTER_CONFIG",
            )
    found = [(magnitude, EditKind.MAGNITUDE), (added, EditKind.ADDED_BIAS), (biases, EditKind.BIAS)]
    edits = [Edit(module, kind, _vector(tensor)) for tensors, kind in found for tensor in tensors]
    if ROWS in parts:
        end = next((end for end in config.tokens if module.endswith(end)), None)
        tokens = () if end is None else config.tokens[end]
        edits.append(tokens_edit(module, parts[ROWS], tokens, "trainable_token_indices"))
    return edits


def _check_tokens(config: LoraConfig, edits: list[Edit]) -> None:
    # Of tied modules, PEFT saves the rows of only one.
    if config.tokens and not any(edit.kind is EditKind.TOKENS for edit in edits):
        raise PackageError(
            f"there is no tensor '{ROWS}', but adapter_config.json has trainable_token_indices",
            "INVALID_ADAPTER_CONFIG",
        )


def _vector(tensor: TensorInfo) -> TensorInfo:
    if len(tensor.shape) != 1:
        raise PackageError(f"tensor {tensor.name}: shape {shown(tensor.shape)} is not 1-D")
    return tensor
