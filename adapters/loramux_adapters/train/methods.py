"""Training methods as PEFT configs; methods that could not be packed are refused beforehand."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from peft import (
    AdaLoraConfig,
    IA3Config,
    LoraConfig,
    PeftConfig,
    PrefixTuningConfig,
    PromptTuningConfig,
)

from loramux_adapters.errors import PackageError
from loramux_adapters.kinds import kind_of
from loramux_adapters.weights.adalora import as_lora_config


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """Method, size and targets of the adapter to train."""

    method: str = "lora"
    """A name of `METHODS`."""
    rank: int = 8
    """Rank; for adalora the average over layers, for prompt and prefix the virtual tokens."""
    alpha: float = 16.0
    targets: tuple[str, ...] = ()
    """Names of layers or suffixes of names; empty for all linear layers."""

    @property
    def target_modules(self) -> str | list[str]:
        """The targets in PEFT's form."""
        return list(self.targets) or "all-linear"


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelTraits:
    """What PEFT has to know about the model that is adapted."""

    task_type: str = "CAUSAL_LM"
    saved: tuple[str, ...] = ()
    """Names of modules that are trained in full: the head."""
    post_layers: tuple[str, ...] = ()
    """Names of linear layers after the base's layers, which IA³ does not adapt."""
    prompt_sizes: Mapping[str, int] = field(default_factory=dict)
    """Config fields for the size of an embedding, where PEFT does not infer it."""
    prefix_sizes: Mapping[str, int] = field(default_factory=dict)
    """Likewise for the size of keys and values."""

    @property
    def common(self) -> dict[str, Any]:
        """Config fields of any method."""
        saved = {"modules_to_save": list(self.saved)} if self.saved else {}
        return {"task_type": self.task_type, **saved}


def peft_config(shape: Shape, steps: int, traits: ModelTraits | None = None) -> PeftConfig:
    """Return the PEFT config for `steps` steps of training; by default for a decoder without head.

    Raises:
        PackageError: The method is unknown, or its result could not be packed.
    """
    if shape.method not in METHODS:
        raise PackageError(
            f"method is {shape.method!r}; expected one of {', '.join(METHODS)}",
            "INVALID_FIELD",
        )
    config = METHODS[shape.method](shape, steps, traits or ModelTraits())
    try:
        fields = _as_packed(config)
        kind_of(fields).check(fields)
    except PackageError as error:
        raise PackageError(
            f"method {shape.method} cannot be trained, because its result could not be packed: "
            f"{error}",
            error.reason,
        ) from None
    return config


def _lora(shape: Shape, traits: ModelTraits, **fields: bool) -> PeftConfig:
    return LoraConfig(
        **traits.common,
        r=shape.rank,
        lora_alpha=shape.alpha,
        target_modules=shape.target_modules,
        **fields,
    )


def _adalora(shape: Shape, steps: int, traits: ModelTraits) -> PeftConfig:
    # The schedule of the paper's experiments, arXiv 2303.10512: start with 1.5 times the rank,
    # prune after a tenth of the steps, and keep the final ranks for the last three tenths.
    return AdaLoraConfig(
        **traits.common,
        init_r=shape.rank + (shape.rank + 1) // 2,
        target_r=shape.rank,
        lora_alpha=shape.alpha,
        target_modules=shape.target_modules,
        total_step=steps,
        tinit=steps // 10,
        tfinal=steps * 3 // 10,
    )


def _ia3(shape: Shape, traits: ModelTraits) -> PeftConfig:
    return IA3Config(
        **traits.common,
        target_modules=shape.target_modules,
        exclude_modules=None if shape.targets else list(traits.post_layers) or None,
        feedforward_modules=[],
    )


METHODS: Mapping[str, Callable[[Shape, int, ModelTraits], PeftConfig]] = {
    "lora": lambda shape, _, traits: _lora(shape, traits),
    "rslora": lambda shape, _, traits: _lora(shape, traits, use_rslora=True),
    "dora": lambda shape, _, traits: _lora(shape, traits, use_dora=True),
    "adalora": _adalora,
    "ia3": lambda shape, _, traits: _ia3(shape, traits),
    "prompt": lambda shape, _, traits: PromptTuningConfig(
        **traits.common, **traits.prompt_sizes, num_virtual_tokens=shape.rank
    ),
    "prefix": lambda shape, _, traits: PrefixTuningConfig(
        **traits.common, **traits.prefix_sizes, num_virtual_tokens=shape.rank
    ),
}
"""Method -> function that makes the PEFT config from a shape, the number of steps and a model."""


def _as_packed(config: PeftConfig) -> dict[str, object]:
    """Return `config` in the form that the package will have."""
    fields: dict[str, object] = config.to_dict()
    fields = {
        name: sorted(value) if isinstance(value, set) else value for name, value in fields.items()
    }
    fields["peft_type"] = str(config.peft_type.value)
    return as_lora_config(fields) if fields["peft_type"] == "ADALORA" else fields
