"""Virtual tokens: what prompt tuning, P-tuning, prefix tuning and cartridges put before prompts.

PEFT runs the encoders of P-tuning and of prefix tuning when it saves, so a file has final
embeddings, or final keys and values, regardless of how they were made. There may also be a head and
other modules that were trained in full.

Methods: arXiv 2104.08691 (prompt tuning), 2103.10385 (P-tuning), 2303.02861 (multitask prompt
tuning), 2101.00190 (prefix tuning), github.com/HazyResearch/cartridges. Fields: the configs of PEFT
0.21.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from loramux_adapters.contents import Contents, Edit, VirtualTokens
from loramux_adapters.errors import PackageError, shown
from loramux_adapters.fields import (
    PROMPT_PREFIX,
    Fields,
    integer,
    invalid,
    refuse_unsupported,
    text,
    unsupported,
)
from loramux_adapters.saved import saved_edit, saved_names, without_repeats
from loramux_adapters.tensorfile import TensorInfo

MAX_VIRTUAL_TOKENS = 1 << 20
_MAX_SIZE = 1 << 20
_COMMON = frozenset({
    "peft_version", "base_model_name_or_path", "revision", "auto_mapping",
    "inference_mode",
})  # fmt: skip
_INITIALIZATION = frozenset({
    "prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_name_or_path", "tokenizer_kwargs",
})  # fmt: skip
_SHAPE = frozenset({
    "peft_type", "task_type", "num_virtual_tokens", "token_dim", "num_transformer_submodules",
    "modules_to_save",
})  # fmt: skip
_CACHE_SHAPE = frozenset({"num_layers", "num_attention_heads"})

PROMPT_FIELDS = Fields(_SHAPE, _COMMON | _CACHE_SHAPE | _INITIALIZATION, {})
P_FIELDS = Fields(
    _SHAPE,
    _COMMON | _CACHE_SHAPE | {
        "encoder_reparameterization_type", "encoder_hidden_size", "encoder_num_layers",
        "encoder_dropout",
    },
    {},
)  # fmt: skip
MULTITASK_FIELDS = Fields(
    _SHAPE | {"num_tasks", "num_ranks"},
    _COMMON | _CACHE_SHAPE | _INITIALIZATION | {
        "prompt_tuning_init_state_dict_path", "prompt_tuning_init_task",
    },
    {},
)  # fmt: skip
# PEFT saves the sum of the tokens' embeddings and of what was learned on top of them.
CPT_FIELDS = Fields(
    _SHAPE,
    _COMMON | _CACHE_SHAPE | {
        "cpt_token_ids", "cpt_mask", "cpt_tokens_type_mask", "opt_weighted_loss_type",
        "opt_loss_decay_factor", "opt_projection_epsilon", "opt_projection_format_epsilon",
        "tokenizer_name_or_path",
    },
    {},
)  # fmt: skip
PREFIX_FIELDS = Fields(
    _SHAPE | _CACHE_SHAPE,
    _COMMON | {"encoder_hidden_size", "prefix_projection", "init_weights"},
    {},
)
CARTRIDGE_FIELDS = Fields(_SHAPE | _CACHE_SHAPE, _COMMON | {"num_frozen_tokens"}, {})

_EMBEDDINGS, _COLUMNS, _ROWS = "prompt_embeddings", "prefix_task_cols", "prefix_task_rows"
VIRTUAL_TENSORS = frozenset((_EMBEDDINGS, _COLUMNS, _ROWS))
"""Names of all tensors of virtual tokens."""
_Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class VirtualTokensConfig:
    """What a validated config says about virtual tokens; sizes that it does not state are 0."""

    count: int
    token_dim: int
    base_model: str
    num_ranks: int = 0
    """Rank of the factors of a multitask prompt."""
    num_layers: int = 0
    """Layers of the base, if keys and values are given."""
    num_heads: int = 0
    num_sequences: int = 1
    """Sequences per request of the base: 2 for an encoder-decoder, else 1."""
    saved: tuple[str, ...] = ()
    """Suffixes of the names of modules that were trained in full."""


def check_prompt(config: Mapping[str, object]) -> VirtualTokensConfig:
    """Validate `config`, a parsed `adapter_config.json` of prompt tuning.

    Raises:
        PackageError: A field is malformed (reason INVALID_ADAPTER_CONFIG) or asks for something
            unsupported (UNSUPPORTED_ADAPTER_FEATURE). The message names the field.
    """
    return _check(config, PROMPT_FIELDS)


def check_p_tuning(config: Mapping[str, object]) -> VirtualTokensConfig:
    """Validate a config of P-tuning; see `check_prompt`."""
    return _check(config, P_FIELDS)


def check_cpt(config: Mapping[str, object]) -> VirtualTokensConfig:
    """Validate a config of context-aware prompt tuning; see `check_prompt`."""
    return _check(config, CPT_FIELDS)


def check_multitask(config: Mapping[str, object]) -> VirtualTokensConfig:
    """Validate a config of multitask prompt tuning; see `check_prompt`."""
    if integer(config, "num_tasks", 1, 1, _MAX_SIZE) != 1:
        raise unsupported(
            "num_tasks",
            config["num_tasks"],
            "requests cannot select a task; save the adapter of one task, with num_tasks 1",
        )
    return _check(config, MULTITASK_FIELDS, num_ranks=integer(config, "num_ranks", 1, 1, _MAX_SIZE))


def check_prefix(config: Mapping[str, object]) -> VirtualTokensConfig:
    """Validate a config of prefix tuning; see `check_prompt`."""
    return _check_cache(config, PREFIX_FIELDS)


def check_cartridge(config: Mapping[str, object]) -> VirtualTokensConfig:
    """Validate a config of a cartridge; see `check_prompt`."""
    return _check_cache(config, CARTRIDGE_FIELDS)


def prompt_contents(config: VirtualTokensConfig, tensors: Mapping[str, TensorInfo]) -> Contents:
    """Return the contents of `tensors`, with virtual tokens as embeddings.

    Raises:
        PackageError: A tensor is missing, is not supported, or disagrees with `config`.
    """
    count, width = config.num_sequences * config.count, _needed("token_dim", config.token_dim)
    shapes: dict[str, tuple[int, ...]] = {_EMBEDDINGS: (count, width)}
    if config.num_ranks:
        shapes[_COLUMNS] = (1, count, config.num_ranks)
        shapes[_ROWS] = (1, config.num_ranks, width)
    (embeddings, *factors), edits = _split(tensors, shapes, config.saved)
    virtual = VirtualTokens(
        embeddings,
        factors=(factors[0], factors[1]) if factors else None,
        num_sequences=config.num_sequences,
    )
    return Contents(edits=edits, virtual=virtual)


def prefix_contents(config: VirtualTokensConfig, tensors: Mapping[str, TensorInfo]) -> Contents:
    """Return the contents of `tensors`, with virtual tokens as keys and values.

    Raises:
        PackageError: A tensor is missing, is not supported, or disagrees with `config`.
    """
    num_layers = _needed("num_layers", config.num_layers)
    num_heads = _needed("num_attention_heads", config.num_heads)
    width = _needed("token_dim", config.token_dim)
    if width % num_heads:
        raise invalid(
            "token_dim", f"is {width}, not a multiple of num_attention_heads, {num_heads}"
        )
    shapes: _Shapes = {_EMBEDDINGS: (config.count, 2 * num_layers * width)}
    (both,), edits = _split(tensors, shapes, config.saved)
    virtual = VirtualTokens(
        both, num_layers=num_layers, num_heads=num_heads, num_sequences=config.num_sequences
    )
    return Contents(edits=edits, virtual=virtual)


def _check_cache(config: Mapping[str, object], fields: Fields) -> VirtualTokensConfig:
    return _check(
        config,
        fields,
        num_layers=_size(config, "num_layers"),
        num_heads=_size(config, "num_attention_heads"),
    )


def _check(
    config: Mapping[str, object],
    fields: Fields,
    *,
    num_ranks: int = 0,
    num_layers: int = 0,
    num_heads: int = 0,
) -> VirtualTokensConfig:
    refuse_unsupported(config, fields)
    count = integer(config, "num_virtual_tokens", 0, 1, MAX_VIRTUAL_TOKENS)
    submodules = config.get("num_transformer_submodules")
    if submodules is not None and (type(submodules) is not int or submodules not in (1, 2)):
        raise unsupported(
            "num_transformer_submodules",
            submodules,
            "expected 1, or 2 for an encoder-decoder",
        )
    return VirtualTokensConfig(
        count,
        _size(config, "token_dim"),
        text(config, "base_model_name_or_path"),
        num_ranks,
        num_layers,
        num_heads,
        submodules or 1,
        saved_names(config),
    )


def _size(config: Mapping[str, object], name: str) -> int:
    """Return the size `name`; 0 if it is absent, as before PEFT has seen the base."""
    if config.get(name) is None:
        return 0
    return integer(config, name, 0, 1, _MAX_SIZE)


def _needed(name: str, size: int) -> int:
    if not size:
        raise invalid(name, "is missing; PEFT writes it when it saves an adapter")
    return size


def _split(
    tensors: Mapping[str, TensorInfo], shapes: _Shapes, saved: tuple[str, ...]
) -> tuple[list[TensorInfo], list[Edit]]:
    """Return the tensors named in `shapes`, and the replacements that all other tensors are.

    The others have to be of modules in `saved`.
    """
    for name, shape in shapes.items():
        if name not in tensors:
            raise PackageError(f"tensor {name} is missing")
        if tensors[name].shape != shape:
            raise PackageError(
                f"tensor {name}: shape {shown(list(tensors[name].shape))} is not {list(shape)}, as "
                "required by adapter_config.json",
                "INVALID_ADAPTER_CONFIG",
            )
    others = {name: tensor for name, tensor in tensors.items() if name not in shapes}
    served = ", ".join(repr(each) for each in shapes)
    for name in others.keys() & VIRTUAL_TENSORS:
        raise PackageError(
            f"tensor {name} is not supported; expected {served}", "UNSUPPORTED_ADAPTER_FEATURE"
        )
    kept = without_repeats(others, saved, PROMPT_PREFIX)
    edits = [saved_edit(tensor, saved, served, PROMPT_PREFIX) for tensor in kept]
    return [tensors[name] for name in shapes], sorted(edits, key=lambda edit: edit.tensor.name)
