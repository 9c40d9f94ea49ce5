"""Reading and validating single fields of `adapter_config.json`, for all methods."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from loramux_adapters.errors import PackageError, shown

PREFIX = "base_model.model."
"""Prefix of tensor names in PEFT's files."""
PROMPT_PREFIX = "base_model."
"""Prefix beside virtual tokens, for which PEFT does not wrap the base."""
MAX_ALPHA = 4096.0
_METACHARACTERS = re.compile(r"[^A-Za-z0-9_.\-]")


@dataclass(frozen=True, slots=True)
class Fields:
    """How each config field of one method is treated."""

    honoured: frozenset[str]
    """Fields that determine what is computed."""
    recorded: frozenset[str]
    """Fields that do not change the result of saved, unmerged weights: kept but not used."""
    refused: Mapping[str, str]
    """Unsupported fields that would change the result -> why they are refused, unless off."""
    harmless: Mapping[str, tuple[object, ...]] = field(default_factory=dict)
    """Further values of refused fields, other than empty or False, that change nothing."""

    def is_off(self, name: str, value: object) -> bool:
        """Return whether `value` makes the refused field `name` a no-op."""
        # An empty object is not off: PEFT takes it for a config with defaults.
        return value in self.harmless.get(name, (None, False, "", []))


def refuse_unsupported(config: Mapping[str, object], fields: Fields) -> None:
    """Check that `config` asks for nothing that is unsupported.

    Raises:
        PackageError: A field does.
    """
    known = fields.honoured | fields.recorded | fields.refused.keys()
    for name, value in config.items():
        if name in fields.refused and not fields.is_off(name, value):
            raise unsupported(name, value, fields.refused[name])
        # A field of a later PEFT version that is off cannot change anything.
        if name not in known and value:
            raise unsupported(name, value, "the field is not known to this version")


def split_name(name: str, endings: tuple[str, ...], served: str) -> tuple[str, str]:
    """Split the tensor `name` into its module and one of `endings`.

    Raises:
        PackageError: PEFT saves no such tensor, or it has another ending; the message says what
            is supported, which is `served`.
    """
    path = path_of(name)
    for ending in endings:
        if path.endswith(ending):
            return path.removesuffix(ending), ending
    raise PackageError(
        f"tensor {name} is not supported; expected {served}", "UNSUPPORTED_ADAPTER_FEATURE"
    )


def path_of(name: str, prefix: str = PREFIX) -> str:
    """Return the tensor `name` without the `prefix` that PEFT adds.

    Raises:
        PackageError: It does not have that prefix.
    """
    if not name.startswith(prefix):
        raise PackageError(
            f"tensor {name} does not begin with '{prefix}', as tensors saved by PEFT do"
        )
    return name.removeprefix(prefix)


def invalid(name: str, fault: str) -> PackageError:
    """Return the error for a malformed field."""
    return PackageError(f"adapter_config.json: {name} {fault}", "INVALID_ADAPTER_CONFIG")


def unsupported(name: str, value: object, why: str) -> PackageError:
    """Return the error for a field that asks for something unsupported."""
    return PackageError(
        f"adapter_config.json: {shown(name)} = {shown(value)} is not supported: {why}",
        "UNSUPPORTED_ADAPTER_FEATURE",
    )


def integer(
    config: Mapping[str, object], key: str, default: int, low: int, high: int, label: str = ""
) -> int:
    """Return the integer field `key`, which must be from `low` to `high`."""
    value = config.get(key, default)
    if type(value) is not int or not low <= value <= high:
        raise invalid(label or key, f"is {shown(value)}; expected an integer from {low} to {high}")
    return value


def alpha(value: object, label: str) -> float:
    """Return the validated numerator of a scale."""
    if type(value) not in (int, float) or not 0 < value <= MAX_ALPHA:  # type: ignore[operator]
        raise invalid(
            label, f"is {shown(value)}; expected a number above 0 and up to {MAX_ALPHA:g}"
        )
    return float(value)  # type: ignore[arg-type]


def boolean(config: Mapping[str, object], name: str) -> bool:
    """Return the boolean field `name`; False if it is absent."""
    value = config.get(name)
    if value is not None and type(value) is not bool:
        raise invalid(name, f"is {shown(value)}; expected true or false")
    return bool(value)


def text(config: Mapping[str, object], name: str) -> str:
    """Return the string field `name`; empty if it is absent."""
    value = config.get(name) or ""
    if not isinstance(value, str) or len(value) > 4096:
        raise invalid(name, f"is {shown(value)}; expected a string of at most 4096 characters")
    return value


def mapping(config: Mapping[str, object], name: str) -> Mapping[str, object]:
    """Return the object field `name`; empty if it is absent."""
    value = config.get(name) or {}
    if not isinstance(value, dict):
        raise invalid(name, f"is {shown(value)}; expected an object")
    return value


def names(config: Mapping[str, object], name: str) -> tuple[str, ...]:
    """Return the field `name`, a list of literal module names; empty if it is absent."""
    value = config.get(name) or []
    if isinstance(value, str):
        raise unsupported(name, value, "a regular expression; list the names of the modules")
    if not isinstance(value, list) or not all(isinstance(each, str) and each for each in value):
        raise invalid(name, f"is {shown(value)}; expected a list of module names")
    for each in value:
        if _METACHARACTERS.search(each):
            raise unsupported(
                name, each, "patterns are not supported here; list literal module names"
            )
    return tuple(value)


def layers(value: object) -> frozenset[int] | None:
    """Return the layer numbers in `layers_to_transform`; None means all."""
    if value is None or value == []:
        return None
    numbers = [value] if type(value) is int else value
    if not isinstance(numbers, list) or not all(type(n) is int and n >= 0 for n in numbers):
        raise invalid("layers_to_transform", f"is {shown(value)}; expected layer numbers from 0")
    return frozenset(numbers)
