"""What a LoRA config means for each module: rank, scale, and whether it is adapted at all.

Fields follow `peft.LoraConfig`, PEFT 0.21.
"""

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from loramux_adapters.matching import tails
from loramux_adapters.pattern import Pattern
from loramux_adapters.targets import Keyed, Named, is_named, layer_number_at


class Bias(enum.StrEnum):
    """Which biases an adapter replaces."""

    NONE = "none"
    ALL = "all"
    LORA_ONLY = "lora_only"
    """Those of the adapted layers; whichever of them PEFT saved are honoured."""


@dataclass(frozen=True, slots=True)
class LoraConfig:
    """What a validated LoRA config says about each module."""

    rank: int
    alpha: float
    use_rslora: bool
    ranks: Keyed[int]
    alphas: Keyed[float]
    target_modules: Named | None
    """None means every linear layer."""
    exclude_modules: Named
    layers: frozenset[int] | None
    """Layer numbers; None means all."""
    layers_pattern: tuple[str | Pattern, ...]
    """Names of the module lists before the layer number; the first that is found counts."""
    base_model: str
    use_dora: bool = False
    lora_bias: bool = False
    bias: Bias = Bias.NONE
    saved: tuple[str, ...] = ()
    """Suffixes of the names of modules that were trained in full."""
    tokens: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Suffixes of the names of embeddings -> tokens whose rows were trained."""
    ensures_tying: bool = False
    """Whether modules tied to an embedding were adapted with it, though no field names them."""
    parameters: frozenset[str] = frozenset()
    """Suffixes of the names of experts' parameters that are adapted."""
    invocation: tuple[int, ...] = ()
    """Tokens from whose last occurrence in a prompt the adapter applies (aLoRA); empty: from the
    beginning."""

    def rank_of(self, module: str) -> int:
        """Return the rank that the config gives to `module`."""
        return self.ranks.of(module, self.rank)

    def scale_of(self, module: str) -> float:
        """Return the factor of B(Ax) for `module`: alpha/r, or alpha/sqrt(r) for rsLoRA."""
        alpha = self.alphas.of(module, self.alpha)
        rank = self.rank_of(module)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)

    def targets(self, module: str) -> bool:
        """Return whether PEFT would give `module` an adapter."""
        targets = self.target_modules
        if is_named(module, self.exclude_modules):
            return False
        if targets is not None and not is_named(module, targets):
            return False
        if isinstance(targets, frozenset) and module in targets:
            return True  # PEFT ignores layers_to_transform for a module named in full
        return self.layers is None or self._layer_of(module) in self.layers

    def targets_parameter(self, name: str) -> bool:
        """Return whether PEFT would adapt the parameter `name`."""
        return not self.parameters.isdisjoint(tails(name))

    def key_of(self, module: str) -> str:
        """Return the name by which `rank_pattern` and `alpha_pattern` know `module`.

        A router is targeted by its weight.
        """
        weight = f"{module}.weight"
        return weight if self.targets_parameter(weight) else module

    def _layer_of(self, module: str) -> int | None:
        parts = module.split(".")
        numbers = [(i, int(part)) for i, part in enumerate(parts[:-1]) if part.isdecimal()]
        if not self.layers_pattern:
            # As in PEFT, something must precede the name before the number.
            return next((number for i, number in numbers if i > 1), None)
        found: dict[str, int] = {}
        for i, number in reversed(numbers):  # of two numbers after the same name, the first counts
            found.update(dict.fromkeys(tails(".".join(parts[:i])), number))
        behind = (
            layer_number_at(module, name) if isinstance(name, Pattern) else found.get(name)
            for name in self.layers_pattern
        )
        return next((number for number in behind if number is not None), None)
