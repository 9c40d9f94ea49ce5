"""What a LoRA config means for a layer: its rank, its scale, and whether it has an adapter at all.

Source of the meaning: `peft.LoraConfig`, PEFT 0.21.
"""

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from loramux_adapters.matching import tails
from loramux_adapters.pattern import Pattern
from loramux_adapters.targets import Keyed, Named, is_named, number_behind


class Bias(enum.StrEnum):
    """Which biases an adapter brings in place of the base model's."""

    NONE = "none"
    ALL = "all"
    LORA_ONLY = "lora_only"
    """Of the layers that it changes, as PEFT means it; what PEFT saves of them is served."""


@dataclass(frozen=True, slots=True)
class LoraConfig:
    """What a checked LoRA config says about each module."""

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
    """Names of what the layer number stands behind; the first that is found counts."""
    base_model: str
    use_dora: bool = False
    lora_bias: bool = False
    bias: Bias = Bias.NONE
    saved: tuple[str, ...] = ()
    """Ends of the names of modules that were trained whole."""
    tokens: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Ends of the names of embeddings -> the tokens whose rows were trained."""
    ensures_tying: bool = False
    """Whether what is tied to embeddings was adapted with them, though no field names it."""
    parameters: frozenset[str] = frozenset()
    """Ends of the names of parameters of experts that are changed."""
    invocation: tuple[int, ...] = ()
    """Tokens from whose last occurrence in a prompt on the adapter is active (aLoRA); empty where
    it is from the beginning."""

    def rank_of(self, module: str) -> int:
        """Return the rank that the config gives to `module`."""
        return self.ranks.of(module, self.rank)

    def scale_of(self, module: str) -> float:
        """Return what multiplies B(Ax) for `module`: alpha/r, or alpha/sqrt(r) for rsLoRA."""
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
            return True  # PEFT does not look at the layer of a module named in full
        return self.layers is None or self._layer_of(module) in self.layers

    def targets_parameter(self, name: str) -> bool:
        """Return whether PEFT would give the parameter `name` an adapter."""
        return not self.parameters.isdisjoint(tails(name))

    def key_of(self, module: str) -> str:
        """Return the name for which the patterns say what the low-rank change of `module` is.

        What chooses among experts is targeted by its weight.
        """
        weight = f"{module}.weight"
        return weight if self.targets_parameter(weight) else module

    def _layer_of(self, module: str) -> int | None:
        parts = module.split(".")
        numbers = [(i, int(part)) for i, part in enumerate(parts[:-1]) if part.isdecimal()]
        if not self.layers_pattern:
            # PEFT: there has to be something before the name that the number stands behind.
            return next((number for i, number in numbers if i > 1), None)
        found: dict[str, int] = {}
        for i, number in reversed(numbers):  # of two numbers behind one name the first counts
            found.update(dict.fromkeys(tails(".".join(parts[:i])), number))
        behind = (
            number_behind(module, name) if isinstance(name, Pattern) else found.get(name)
            for name in self.layers_pattern
        )
        return next((number for number in behind if number is not None), None)
