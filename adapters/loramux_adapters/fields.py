"""Fields of `adapter_config.json`, whatever the method: read one at a time, and checked."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from loramux_adapters.errors import PackageError, shown

PREFIX = "base_model.model."
"""How names of tensors begin that PEFT saved."""
PROMPT_PREFIX = "base_model."
"""How they begin beside virtual tokens, for which PEFT puts nothing around the base."""
MAX_ALPHA = 4096.0
_METACHARACTERS = re.compile(r"[^A-Za-z0-9_.\-]")


@dataclass(frozen=True, slots=True)
class Fields:
    """What becomes of each field of one method's config."""

    honoured: frozenset[str]
    """Decide what is served."""
    recorded: frozenset[str]
    """Do not change the result of saved, unmerged weights: kept, never followed."""
    refused: Mapping[str, str]
    """Would change the result and are not served: refused, unless switched off, because of this."""
    harmless: Mapping[str, tuple[object, ...]] = field(default_factory=dict)
    """Of refused fields that are not off when empty or False: the values that change nothing."""

    def is_off(self, name: str, value: object) -> bool:
        """Return whether the refused field `name` changes nothing when it is `value`."""
        # To PEFT an empty object is a config with its defaults, which is on.
        return value in self.harmless.get(name, (None, False, "", []))


def refuse_unserved(config: Mapping[str, object], fields: Fields) -> None:
    """Demand that no field of `config` asks for what is not served.

    Raises:
        PackageError: One does.
    """
    known = fields.honoured | fields.recorded | fields.refused.keys()
    for name, value in config.items():
        if name in fields.refused and not fields.is_off(name, value):
            raise unsupported(name, value, fields.refused[name])
        # A field of a later PEFT that is off cannot change anything.
        if name not in known and value:
            raise unsupported(name, value, "the field is not known to this version")


def split_name(name: str, endings: tuple[str, ...], served: str) -> tuple[str, str]:
    """Return the module of the tensor `name`, and which of `endings` follows it.

    Raises:
        PackageError: It is no tensor that PEFT saves, or has another ending; `served` says which
            are right.
    """
    path = path_of(name)
    for ending in endings:
        if path.endswith(ending):
            return path.removesuffix(ending), ending
    raise PackageError(f"tensor {name} is refused: only {served}", "UNSUPPORTED_ADAPTER_FEATURE")


def path_of(name: str, prefix: str = PREFIX) -> str:
    """Return the tensor `name` without `prefix`, which PEFT puts before it.

    Raises:
        PackageError: It is no tensor that PEFT saves.
    """
    if not name.startswith(prefix):
        raise PackageError(
            f"tensor {name} does not begin with '{prefix}', as tensors saved by PEFT do"
        )
    return name.removeprefix(prefix)


def invalid(name: str, fault: str) -> PackageError:
    """Return the error of a malformed field."""
    return PackageError(f"adapter_config.json: {name} {fault}", "INVALID_ADAPTER_CONFIG")


def unsupported(name: str, value: object, why: str) -> PackageError:
    """Return the error of a field that asks for what is not served."""
    return PackageError(
        f"adapter_config.json: {shown(name)} = {shown(value)} is refused: {why}",
        "UNSUPPORTED_ADAPTER_FEATURE",
    )


def integer(
    config: Mapping[str, object], key: str, default: int, low: int, high: int, label: str = ""
) -> int:
    """Return the integer `key`, which must be from `low` to `high`."""
    value = config.get(key, default)
    if type(value) is not int or not low <= value <= high:
        raise invalid(label or key, f"is {shown(value)}, not an integer from {low} to {high}")
    return value


def alpha(value: object, label: str) -> float:
    """Return a scale's numerator."""
    if type(value) not in (int, float) or not 0 < value <= MAX_ALPHA:  # type: ignore[operator]
        raise invalid(label, f"is {shown(value)}, not a number above 0 and up to {MAX_ALPHA:g}")
    return float(value)  # type: ignore[arg-type]


def boolean(config: Mapping[str, object], name: str) -> bool:
    """Return the switch `name`, which is off where it is absent."""
    value = config.get(name)
    if value is not None and type(value) is not bool:
        raise invalid(name, f"is {shown(value)}, not true or false")
    return bool(value)


def text(config: Mapping[str, object], name: str) -> str:
    """Return the string `name`, which is empty where it is absent."""
    value = config.get(name) or ""
    if not isinstance(value, str) or len(value) > 4096:
        raise invalid(name, f"is {shown(value)}, not a string of at most 4096 characters")
    return value


def mapping(config: Mapping[str, object], name: str) -> Mapping[str, object]:
    """Return the object `name`."""
    value = config.get(name) or {}
    if not isinstance(value, dict):
        raise invalid(name, f"is {shown(value)}, not an object")
    return value


def names(config: Mapping[str, object], name: str) -> tuple[str, ...]:
    """Return the list `name` of names of modules."""
    value = config.get(name) or []
    if isinstance(value, str):
        raise unsupported(name, value, "a regular expression; list the names of the modules")
    if not isinstance(value, list) or not all(isinstance(each, str) and each for each in value):
        raise invalid(name, f"is {shown(value)}, not a list of module names")
    for each in value:
        if _METACHARACTERS.search(each):
            raise unsupported(name, each, "patterns are not served; give literal module names")
    return tuple(value)


def layers(value: object) -> frozenset[int] | None:
    """Return the numbers of layers in `layers_to_transform`; None means all."""
    if value is None or value == []:
        return None
    numbers = [value] if type(value) is int else value
    if not isinstance(numbers, list) or not all(type(n) is int and n >= 0 for n in numbers):
        raise invalid("layers_to_transform", f"is {shown(value)}, not layer numbers from 0")
    return frozenset(numbers)
