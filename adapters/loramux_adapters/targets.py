"""Which modules a config names: by lists, and by regular expressions, as PEFT takes them."""

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
"""Names of modules, whole or the last parts of them; or an expression for the whole name."""

_KEY = re.compile(r"(\^|\.\*\\\.)?((?:[A-Za-z0-9_.-]|\\\.)+)\$?")
"""A key that is a name, and before it that it is the whole one, or that something stands there."""
_WHOLE, _INNER = "^", r".*\."
_NAME = re.compile(r"[A-Za-z0-9_.-]+")
_AROUND_KEY = r"(.*\.)?({})$"
_AROUND_LAYERS = r"(?:^|.*?\.){}\.(?P<idx>\d+)\."


def is_name(text: str) -> bool:
    """Return whether `text` is a name, with no sign of an expression but dots."""
    return _NAME.fullmatch(text) is not None


def named(config: Mapping[str, object], name: str, steps: Steps) -> Named:
    """Return the modules in the field `name`: a list of names, or an expression.

    Raises:
        PackageError: It is neither, or an expression that is not served.
    """
    value = config.get(name)
    if isinstance(value, str) and value:
        return Pattern.of(name, value, steps)
    return frozenset(names(config, name))


def is_named(module: str, by: Named) -> bool:
    """Return whether `by` names `module`.

    Raises:
        PackageError: The expressions of the config take too many steps.
    """
    if isinstance(by, Pattern):
        return by.is_whole(module)
    return not by.isdisjoint(tails(module))


def not_targeted(module: str, *others: str) -> PackageError:
    """Return the error of a `module` that has tensors though a config does not name it.

    Args:
        module: Its name.
        others: What names modules in such a config beside the fields that all have.
    """
    fields = ", ".join(("target_modules", "exclude_modules", *others))
    return PackageError(
        f"module {module} has tensors but adapter_config.json does not target it ({fields})",
        "INVALID_ADAPTER_CONFIG",
    )


def layer_names(config: Mapping[str, object], steps: Steps) -> tuple[str | Pattern, ...]:
    """Return `layers_pattern`: what the number of a layer stands behind.

    Raises:
        PackageError: It is no list of names and expressions, or one of those is not served.
    """
    name = "layers_pattern"
    value = config.get(name) or []
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list) or not all(isinstance(each, str) and each for each in value):
        raise invalid(name, f"is {shown(value)}, not a list of names")
    return tuple(
        each if is_name(each) else Pattern.of(name, each, steps, _AROUND_LAYERS, ending="idx")
        for each in value
    )


def number_behind(module: str, pattern: Pattern) -> int | None:
    """Return the number of the layer that `pattern`, of `layers_pattern`, finds in `module`."""
    end = pattern.end(module)
    return None if end is None else int(module[: end - 1].rpartition(".")[2])


@dataclass(frozen=True, slots=True)
class Keyed(Generic[V]):
    """Values by keys that are expressions for the last parts of names; the first counts."""

    name: str
    keys: tuple[str, ...]
    values: tuple[V, ...]
    """Of the keys, in their order."""
    _literal: Mapping[str, Mapping[str, int]] = field(compare=False, repr=False)
    """What stands before names in keys -> name -> place of the key."""
    _patterns: Sequence[tuple[int, Pattern]] = field(compare=False, repr=False)
    """Places of the other keys, and what they are."""

    @classmethod
    def read(cls, name: str, values: Mapping[str, V], steps: Steps) -> "Keyed[V]":
        """Return the field `name` whose checked values are `values`.

        Raises:
            PackageError: A key is an expression that is not served.
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
        """Return the value for `module`, `default` where no key matches it.

        Raises:
            PackageError: The expressions of the config take too many steps.
        """
        if not self.values:
            return default
        place = self._place(module)
        return default if place is None else self.values[place]

    def _place(self, module: str) -> int | None:
        """Return the place of the first key that matches `module`."""
        # Looked up, not searched: a small file can bring thousands of keys and of modules.
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
