"""The methods of training, as configs of PEFT; what could not be packed is refused beforehand."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

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

TASK = "CAUSAL_LM"


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


def peft_config(shape: Shape, steps: int) -> PeftConfig:
    """Return the config for `steps` steps of training.

    Raises:
        PackageError: There is no such method, or what it saves could not be packed.
    """
    if shape.method not in METHODS:
        raise PackageError(
            f"method {shape.method!r} is not known; known are {', '.join(METHODS)}",
            "INVALID_FIELD",
        )
    config = METHODS[shape.method](shape, steps)
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


def _lora(shape: Shape, **fields: bool) -> PeftConfig:
    return LoraConfig(
        task_type=TASK,
        r=shape.rank,
        lora_alpha=shape.alpha,
        target_modules=shape.target_modules,
        **fields,
    )


def _adalora(shape: Shape, steps: int) -> PeftConfig:
    # The schedule of the paper's experiments, arXiv 2303.10512: half as much again at the start,
    # a tenth of the steps before ranks go, three tenths after.
    return AdaLoraConfig(
        task_type=TASK,
        init_r=shape.rank + (shape.rank + 1) // 2,
        target_r=shape.rank,
        lora_alpha=shape.alpha,
        target_modules=shape.target_modules,
        total_step=steps,
        tinit=steps // 10,
        tfinal=steps * 3 // 10,
    )


METHODS: Mapping[str, Callable[[Shape, int], PeftConfig]] = {
    "lora": lambda shape, _: _lora(shape),
    "rslora": lambda shape, _: _lora(shape, use_rslora=True),
    "dora": lambda shape, _: _lora(shape, use_dora=True),
    "adalora": _adalora,
    "ia3": lambda shape, _: IA3Config(
        task_type=TASK, target_modules=shape.target_modules, feedforward_modules=[]
    ),
    "prompt": lambda shape, _: PromptTuningConfig(task_type=TASK, num_virtual_tokens=shape.rank),
    "prefix": lambda shape, _: PrefixTuningConfig(task_type=TASK, num_virtual_tokens=shape.rank),
}
"""Name -> the config that PEFT needs for a shape and a number of steps."""


def _as_packed(config: PeftConfig) -> dict[str, object]:
    """Return `config` as it will be in the package."""
    fields: dict[str, object] = config.to_dict()
    fields = {
        name: sorted(value) if isinstance(value, set) else value for name, value in fields.items()
    }
    fields["peft_type"] = str(config.peft_type.value)
    return as_lora_config(fields) if fields["peft_type"] == "ADALORA" else fields
