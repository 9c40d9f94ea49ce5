"""Which modules a config names, by lists or regular expressions, as PEFT matches them."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from loramux_adapters.errors import PackageError, shown
from loramux_adapters.fields import invalid, names
from loramux_adapters.matching import tails
from loramux_adapters.pattern import Pattern
from loramux_adapters.pattern_code import Steps

V = TypeVar("V")

Named = frozenset[str] | Pattern
"""Names of modules or suffixes of them; or an expression for the whole name."""

_KEY = re.compile(r"(\^|\.\*\\\.)?((?:[A-Za-z0-9_.-]|\\\.)+)\$?")
"""A key that is a literal name, optionally anchored at the beginning or after some prefix."""
_WHOLE, _INNER = "^", r".*\."
_NAME = re.compile(r"[A-Za-z0-9_.-]+")
_AROUND_KEY = r"(.*\.)?({})$"
_AROUND_LAYERS = r"(?:^|.*?\.){}\.(?P<idx>\d+)\."


def is_name(text: str) -> bool:
    """Return whether `text` is a literal name, whose only special characters are dots."""
    return _NAME.fullmatch(text) is not None


def named(config: Mapping[str, object], name: str, steps: Steps) -> Named:
    """Return the modules in the field `name`: a list of names, or an expression.

    Raises:
        PackageError: It is neither, or an unsupported expression.
    """
    value = config.get(name)
    if isinstance(value, str) and value:
        return Pattern.of(name, value, steps)
    return frozenset(names(config, name))


def is_named(module: str, by: Named) -> bool:
    """Return whether `by` matches `module`.

    Raises:
        PackageError: The config's expressions take too many steps.
    """
    if isinstance(by, Pattern):
        return by.fullmatch(module)
    return not by.isdisjoint(tails(module))


def not_targeted(module: str, *others: str) -> PackageError:
    """Return the error for a `module` that has tensors but is not targeted by the config.

    Args:
        module: Its name.
        others: Fields that target modules, beside `target_modules` and `exclude_modules`.
    """
    fields = ", ".join(("target_modules", "exclude_modules", *others))
    return PackageError(
        f"module {module} has tensors but adapter_config.json does not target it ({fields})",
        "INVALID_ADAPTER_CONFIG",
    )


def layer_names(config: Mapping[str, object], steps: Steps) -> tuple[str | Pattern, ...]:
    """Return `layers_pattern`: names of the module list before a layer's number.

    Raises:
        PackageError: It is not a list of names and expressions, or one is unsupported.
    """
    name = "layers_pattern"
    value = config.get(name) or []
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list) or not all(isinstance(each, str) and each for each in value):
        raise invalid(name, f"is {shown(value)}; expected a list of names")
    return tuple(
        each if is_name(each) else Pattern.of(name, each, steps, _AROUND_LAYERS, ending="idx")
        for each in value
    )


def layer_number_at(module: str, pattern: Pattern) -> int | None:
    """Return the layer number that `pattern`, from `layers_pattern`, finds in `module`, if any."""
    end = pattern.end(module)
    return None if end is None else int(module[: end - 1].rpartition(".")[2])


@dataclass(frozen=True, slots=True)
class Keyed(Generic[V]):
    """Values by keys that are patterns for suffixes of module names; the first match counts."""

    name: str
    keys: tuple[str, ...]
    values: tuple[V, ...]
    """Values of the keys, in order."""
    _literal: Mapping[str, Mapping[str, int]] = field(compare=False, repr=False)
    """Anchor of a literal key -> name -> index of the key."""
    _patterns: Sequence[tuple[int, Pattern]] = field(compare=False, repr=False)
    """Index of each other key, and its pattern."""

    @classmethod
    def read(cls, name: str, values: Mapping[str, V], steps: Steps) -> "Keyed[V]":
        """Compile the field `name` with the validated `values`.

        Raises:
            PackageError: A key is an unsupported expression.
        """
        literal: dict[str, dict[str, int]] = {"": {}, _WHOLE: {}, _INNER: {}}
        patterns = []
        for place, key in enumerate(values):
            if found := _KEY.fullmatch(key):
                literal[found[1] or ""].setdefault(found[2].replace("\\.", "."), place)
            else:
                patterns.append((place, Pattern.of(name, key, steps, _AROUND_KEY)))
        return cls(name, tuple(values), tuple(values.values()), literal, patterns)

    def of(self, module: str, default: V) -> V:
        """Return the value for `module`; `default` if no key matches.

        Raises:
            PackageError: The config's expressions take too many steps.
        """
        if not self.values:
            return default
        place = self._place(module)
        return default if place is None else self.values[place]

    def _place(self, module: str) -> int | None:
        """Return the index of the first key that matches `module`; None if none does."""
        # A lookup, not a search: a small file can have thousands of keys and of modules.
        ends = tails(module)
        found = [
            table[end]
            for table, some in zip(self._literal.values(), (ends, [module], ends[1:]), strict=True)
            for end in some
            if end in table
        ]
        first = min(found, default=None)
        for place, pattern in self._patterns:
            if first is not None and place > first:
                break
            if pattern.end(module) is not None:
                return place
        return first
