"""PEFT's `adapter_config.json` for LoRA: every field is honoured or refused by name.

Source of the meaning of each field: `peft.LoraConfig`, PEFT 0.21. PEFT treats several fields as
regular expressions; here they are literal names, because a pattern from a stranger can take
exponential time.
"""

import re
from collections.abc import Mapping

from loramux_adapters.errors import PackageError, shown
from loramux_adapters.lora_config import LoraConfig
from loramux_adapters.strict_json import depth

MAX_CONFIG_BYTES = 64 << 10
MAX_CONFIG_DEPTH = 8
MAX_RANK = 512
MAX_ALPHA = 4096.0
MAX_SCALE = 1000.0

HONOURED = frozenset({
    "peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "target_modules",
    "exclude_modules", "layers_to_transform", "layers_pattern",
})  # fmt: skip
"""Fields that decide what is served."""

RECORDED = frozenset({
    "task_type", "peft_version", "base_model_name_or_path", "revision", "auto_mapping",
    "inference_mode", "lora_dropout", "fan_in_fan_out", "loftq_config", "eva_config",
    "corda_config", "lora_ga_config", "runtime_config", "ensure_weight_tying", "megatron_core",
    "qalora_group_size",
})  # fmt: skip
"""Fields that do not change the result of saved, unmerged weights: kept, never followed.

`fan_in_fan_out` matters to PEFT only when it merges, and the configs of initialisations only before
training. `auto_mapping` and `megatron_core` name Python modules: nothing here ever imports one.
"""

REFUSED = frozenset({
    "bias", "init_lora_weights", "modules_to_save", "megatron_config", "trainable_token_indices",
    "use_dora", "velora_config", "alora_invocation_tokens", "use_qalora", "monteclora_config",
    "layer_replication", "lora_bias", "target_parameters", "use_bdlora", "arrow_config",
    "kasa_config",
})  # fmt: skip
"""Fields that would change the result and are not served yet: refused unless switched off."""

_HARMLESS: Mapping[str, tuple[object, ...]] = {
    "bias": ("none",),
    # The others take their start out of the base: PEFT changes its weights again at each load.
    "init_lora_weights": (True, "gaussian", "eva", "orthogonal", "mica"),
}
"""Values of refused fields that change nothing."""

_METACHARACTERS = re.compile(r"[^A-Za-z0-9_.\-]")


def check_config(config: Mapping[str, object]) -> LoraConfig:
    """Return what `config`, a parsed `adapter_config.json`, asks for.

    Raises:
        PackageError: A field is malformed (reason INVALID_ADAPTER_CONFIG), or asks for something
            that is not served (UNSUPPORTED_ADAPTER_FEATURE). The message names the field.
    """
    if depth(config) > MAX_CONFIG_DEPTH:
        raise _invalid("the config", f"nests deeper than {MAX_CONFIG_DEPTH}")
    kind = config.get("peft_type")
    if kind != "LORA":
        raise _unsupported("peft_type", kind, "'LORA' is served")
    _refuse_unserved(config)
    rank = _integer(config, "r", 8, 1, MAX_RANK)
    ranks = _mapping(config, "rank_pattern")
    alphas = _mapping(config, "alpha_pattern")
    targets = config.get("target_modules")
    checked = LoraConfig(
        rank=rank,
        alpha=_alpha(config.get("lora_alpha", 8), "lora_alpha"),
        use_rslora=_boolean(config, "use_rslora"),
        rank_pattern={
            key: _integer(ranks, key, rank, 1, MAX_RANK, f"rank_pattern[{shown(key)}]")
            for key in ranks
        },
        alpha_pattern={
            key: _alpha(value, f"alpha_pattern[{shown(key)}]") for key, value in alphas.items()
        },
        target_modules=(
            None if targets == "all-linear" else frozenset(_names(config, "target_modules"))
        ),
        exclude_modules=frozenset(_names(config, "exclude_modules")),
        layers=_layers(config.get("layers_to_transform")),
        layers_pattern=_names(config, "layers_pattern", text_is_name=True),
        base_model=_text(config, "base_model_name_or_path"),
    )
    if checked.target_modules is not None and not checked.target_modules:
        raise _invalid("target_modules", "is empty; name the modules that the adapter changes")
    return checked


def _refuse_unserved(config: Mapping[str, object]) -> None:
    for field, value in config.items():
        if field in REFUSED and not _is_off(field, value):
            raise _unsupported(field, value, "it would change results and is not served yet")
        # A field of a later PEFT that is off cannot change anything.
        if field not in HONOURED | RECORDED | REFUSED and value:
            raise _unsupported(field, value, "the field is not known to this version")


def _is_off(field: str, value: object) -> bool:
    # To PEFT an empty object is a config with its defaults, which is on.
    return value in (None, False, "", []) or value in _HARMLESS.get(field, ())


def _invalid(field: str, fault: str) -> PackageError:
    return PackageError(f"adapter_config.json: {field} {fault}", "INVALID_ADAPTER_CONFIG")


def _unsupported(field: str, value: object, why: str) -> PackageError:
    return PackageError(
        f"adapter_config.json: {shown(field)} = {shown(value)} is refused: {why}",
        "UNSUPPORTED_ADAPTER_FEATURE",
    )


def _integer(
    config: Mapping[str, object], key: str, default: int, low: int, high: int, label: str = ""
) -> int:
    value = config.get(key, default)
    if type(value) is not int or not low <= value <= high:
        raise _invalid(label or key, f"is {shown(value)}, not an integer from {low} to {high}")
    return value


def _alpha(value: object, label: str) -> float:
    if type(value) not in (int, float) or not 0 < value <= MAX_ALPHA:  # type: ignore[operator]
        raise _invalid(label, f"is {shown(value)}, not a number above 0 and up to {MAX_ALPHA:g}")
    return float(value)  # type: ignore[arg-type]


def _boolean(config: Mapping[str, object], field: str) -> bool:
    value = config.get(field)
    if value is not None and type(value) is not bool:
        raise _invalid(field, f"is {shown(value)}, not true or false")
    return bool(value)


def _text(config: Mapping[str, object], field: str) -> str:
    value = config.get(field) or ""
    if not isinstance(value, str) or len(value) > 4096:
        raise _invalid(field, f"is {shown(value)}, not a string of at most 4096 characters")
    return value


def _mapping(config: Mapping[str, object], field: str) -> Mapping[str, object]:
    value = config.get(field) or {}
    if not isinstance(value, dict):
        raise _invalid(field, f"is {shown(value)}, not an object")
    for key in value:
        _check_literal(field, key)
    return value


def _names(
    config: Mapping[str, object], field: str, *, text_is_name: bool = False
) -> tuple[str, ...]:
    value = config.get(field) or []
    if isinstance(value, str):
        if not text_is_name:
            # In PEFT a string, unlike a list, is a regular expression for the whole name.
            raise _unsupported(field, value, "a regular expression; list the names of the modules")
        value = [value]
    if not isinstance(value, list) or not all(isinstance(name, str) and name for name in value):
        raise _invalid(field, f"is {shown(value)}, not a list of module names")
    for name in value:
        _check_literal(field, name)
    return tuple(value)


def _check_literal(field: str, name: str) -> None:
    if _METACHARACTERS.search(name):
        raise _unsupported(field, name, "patterns are not served; give literal module names")


def _layers(value: object) -> frozenset[int] | None:
    if value is None or value == []:
        return None
    layers = [value] if type(value) is int else value
    if not isinstance(layers, list) or not all(type(n) is int and n >= 0 for n in layers):
        raise _invalid("layers_to_transform", f"is {shown(value)}, not layer numbers from 0")
    return frozenset(layers)
