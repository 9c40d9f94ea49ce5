"""The methods of training, as configs of PEFT; what could not be packed is refused beforehand."""

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
    """What kind of adapter is trained, and how large it is."""

    method: str = "lora"
    """A name of `METHODS`."""
    rank: int = 8
    """Rank; with adalora that of the layers on average, with prompt and prefix virtual tokens."""
    alpha: float = 16.0
    targets: tuple[str, ...] = ()
    """Names of layers, whole or the last parts of them; none means every linear layer."""

    @property
    def target_modules(self) -> str | list[str]:
        """The targets as PEFT takes them."""
        return list(self.targets) or "all-linear"


@dataclass(frozen=True, kw_only=True, slots=True)
class Learner:
    """What PEFT has to know of the model that a method changes."""

    task_type: str = "CAUSAL_LM"
    saved: tuple[str, ...] = ()
    """Names of the modules that are trained whole: a head."""
    behind: tuple[str, ...] = ()
    """Names of the linear layers behind the layers of the base, which IA³ leaves as they are."""
    prompt_sizes: Mapping[str, int] = field(default_factory=dict)
    """Fields that say how large an embedding is, where PEFT does not find it out itself."""
    prefix_sizes: Mapping[str, int] = field(default_factory=dict)
    """Those that say how large keys and values are."""

    @property
    def common(self) -> dict[str, Any]:
        """Fields of any method."""
        saved = {"modules_to_save": list(self.saved)} if self.saved else {}
        return {"task_type": self.task_type, **saved}


def peft_config(shape: Shape, steps: int, learner: Learner | None = None) -> PeftConfig:
    """Return the config for `steps` steps of training, for a decoder without a head by default.

    Raises:
        PackageError: There is no such method, or what it saves could not be packed.
    """
    if shape.method not in METHODS:
        raise PackageError(
            f"method {shape.method!r} is not known; known are {', '.join(METHODS)}",
            "INVALID_FIELD",
        )
    config = METHODS[shape.method](shape, steps, learner or Learner())
    try:
        fields = _as_packed(config)
        kind_of(fields).check(fields)
    except PackageError as error:
        raise PackageError(
            f"method {shape.method} is not trained, because its result could not be packed: "
            f"{error}",
            error.reason,
        ) from None
    return config


def _lora(shape: Shape, learner: Learner, **fields: bool) -> PeftConfig:
    return LoraConfig(
        **learner.common,
        r=shape.rank,
        lora_alpha=shape.alpha,
        target_modules=shape.target_modules,
        **fields,
    )


def _adalora(shape: Shape, steps: int, learner: Learner) -> PeftConfig:
    # The schedule of the paper's experiments, arXiv 2303.10512: half as much again at the start,
    # a tenth of the steps before ranks go, three tenths after.
    return AdaLoraConfig(
        **learner.common,
        init_r=shape.rank + (shape.rank + 1) // 2,
        target_r=shape.rank,
        lora_alpha=shape.alpha,
        target_modules=shape.target_modules,
        total_step=steps,
        tinit=steps // 10,
        tfinal=steps * 3 // 10,
    )


def _ia3(shape: Shape, learner: Learner) -> PeftConfig:
    return IA3Config(
        **learner.common,
        target_modules=shape.target_modules,
        exclude_modules=None if shape.targets else list(learner.behind) or None,
        feedforward_modules=[],
    )


METHODS: Mapping[str, Callable[[Shape, int, Learner], PeftConfig]] = {
    "lora": lambda shape, _, learner: _lora(shape, learner),
    "rslora": lambda shape, _, learner: _lora(shape, learner, use_rslora=True),
    "dora": lambda shape, _, learner: _lora(shape, learner, use_dora=True),
    "adalora": _adalora,
    "ia3": lambda shape, _, learner: _ia3(shape, learner),
    "prompt": lambda shape, _, learner: PromptTuningConfig(
        **learner.common, **learner.prompt_sizes, num_virtual_tokens=shape.rank
    ),
    "prefix": lambda shape, _, learner: PrefixTuningConfig(
        **learner.common, **learner.prefix_sizes, num_virtual_tokens=shape.rank
    ),
}
"""Name -> the config that PEFT needs for a shape, a number of steps and a model."""


def _as_packed(config: PeftConfig) -> dict[str, object]:
    """Return `config` as it will be in the package."""
    fields: dict[str, object] = config.to_dict()
    fields = {
        name: sorted(value) if isinstance(value, set) else value for name, value in fields.items()
    }
    fields["peft_type"] = str(config.peft_type.value)
    return as_lora_config(fields) if fields["peft_type"] == "ADALORA" else fields
