"""Trained rows of single tokens in embeddings: `trainable_token_indices`, and TRAINABLE_TOKENS.

Semantics follow `peft.TrainableTokensConfig` and `TrainableTokensLayer`, PEFT 0.21. The rows are
the weights themselves, not differences.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from loramux_adapters.contents import Contents, Edit, EditKind
from loramux_adapters.errors import PackageError, shown
from loramux_adapters.fields import Fields, invalid, path_of, refuse_unsupported, text
from loramux_adapters.pattern import Pattern
from loramux_adapters.pattern_code import Steps
from loramux_adapters.saved import saved_edit
from loramux_adapters.targets import Named, is_name, named
from loramux_adapters.tensorfile import TensorInfo

FIELDS = Fields(
    honoured=frozenset({"peft_type", "task_type", "token_indices", "target_modules"}),
    recorded=frozenset({
        "peft_version", "base_model_name_or_path", "revision", "auto_mapping",
        "inference_mode", "init_weights",
    }),
    refused={},
)  # fmt: skip
ROWS = ".token_adapter.trainable_tokens_delta"
"""Suffix of the names of such tensors beside a LoRA."""
_OWN_ROWS = ".trainable_tokens_delta"
_SERVED = f"'{_OWN_ROWS}'"


@dataclass(frozen=True, slots=True)
class TrainableTokensConfig:
    """What a validated config of this method says."""

    tokens: tuple[int, ...]
    target_modules: Named
    """Suffixes of the names of embeddings; empty for the model's input embedding."""
    base_model: str


def check_trainable_tokens(config: Mapping[str, object]) -> TrainableTokensConfig:
    """Validate `config`, a parsed `adapter_config.json` of this method.

    Raises:
        PackageError: A field is malformed or asks for something unsupported.
    """
    refuse_unsupported(config, FIELDS)
    return TrainableTokensConfig(
        tokens=token_list(config.get("token_indices"), "token_indices"),
        target_modules=_targets(config),
        base_model=text(config, "base_model_name_or_path"),
    )


def trainable_tokens_contents(
    config: TrainableTokensConfig, tensors: Mapping[str, TensorInfo]
) -> Contents:
    """Return the contents of `tensors`: rows of tokens, and weights of embeddings.

    Raises:
        PackageError: A tensor is something else, or disagrees with `config`.
    """
    edits = []
    for tensor in tensors.values():
        if tensor.name.endswith(_OWN_ROWS):
            module = path_of(tensor.name).removesuffix(_OWN_ROWS)
            edits.append(tokens_edit(module, tensor, config.tokens, "token_indices"))
        else:
            edits.append(saved_edit(tensor, (), _SERVED))
    # PEFT also saves the rows for a tied module, which no field names.
    if not any(e.kind is EditKind.TOKENS and _is_target(config, e.module) for e in edits):
        raise PackageError(
            f"there is no tensor '{_OWN_ROWS}' of a module in target_modules",
            "INVALID_ADAPTER_CONFIG",
        )
    return Contents(edits=sorted(edits, key=lambda edit: (edit.module, edit.kind)))


def _targets(config: Mapping[str, object]) -> Named:
    name = "target_modules"
    value = config.get(name)
    # If none was given, PEFT writes the name of the input embedding as a string.
    if isinstance(value, str) and is_name(value):
        return frozenset((value,))
    return named(config, name, Steps())


def _is_target(config: TrainableTokensConfig, module: str) -> bool:
    targets = config.target_modules
    if isinstance(targets, Pattern):
        return targets.fullmatch(module)
    return module.endswith(tuple(targets) or ("",))


def token_indices(config: Mapping[str, object]) -> Mapping[str, tuple[int, ...]]:
    """Return `trainable_token_indices`: suffixes of module names -> tokens.

    A plain list is for the input embedding, whatever its name; it has the empty suffix.

    Raises:
        PackageError: The field is malformed.
    """
    field = "trainable_token_indices"
    value = config.get(field)
    if value is None or value == [] or value == {}:
        return {}
    if isinstance(value, list):
        return {"": token_list(value, field)}
    if not isinstance(value, dict):
        raise invalid(
            field, f"is {shown(value)}; expected a list of tokens, or an object of such lists"
        )
    return {name: token_list(each, f"{field}[{shown(name)}]") for name, each in value.items()}


def token_list(value: object, label: str) -> tuple[int, ...]:
    """Return the tokens in the list `value`.

    Raises:
        PackageError: It is not a list of distinct token ids.
    """
    if not isinstance(value, list) or not all(type(n) is int and n >= 0 for n in value):
        raise invalid(label, f"is {shown(value)}; expected a list of token ids from 0")
    if not value or len(set(value)) != len(value):
        raise invalid(label, "is empty" if not value else "has a token twice")
    return tuple(value)


def tokens_edit(module: str, tensor: TensorInfo, tokens: tuple[int, ...], label: str) -> Edit:
    """Return the edit of `module` whose rows for `tokens` are in `tensor`.

    Raises:
        PackageError: It has another number of rows; `label` is the field that lists the tokens.
    """
    if len(tensor.shape) != 2 or tensor.shape[0] != len(tokens):
        raise PackageError(
            f"tensor {tensor.name}: shape {list(tensor.shape)} does not have one row for each of "
            f"the {len(tokens)} tokens in {label} of adapter_config.json"
        )
    return Edit(module, EditKind.TOKENS, tensor, "weight", tokens)
