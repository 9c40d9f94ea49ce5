"""The supported adapter methods, by PEFT's names, and how adapters of each are read.

For each method there is a function that validates its config and one that interprets its tensors.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from loramux_adapters.bottleneck import FIELDS as BOTTLENECK_FIELDS
from loramux_adapters.bottleneck import PEFT_TYPE, bottleneck_contents, check_bottleneck
from loramux_adapters.contents import Contents
from loramux_adapters.fields import PREFIX, PROMPT_PREFIX, Fields, invalid, text, unsupported
from loramux_adapters.head_contents import take_head
from loramux_adapters.ia3 import FIELDS as IA3_FIELDS
from loramux_adapters.ia3 import check_ia3, ia3_contents
from loramux_adapters.ln_tuning import FIELDS as LN_TUNING_FIELDS
from loramux_adapters.ln_tuning import check_ln_tuning, ln_tuning_contents
from loramux_adapters.lora_contents import lora_contents
from loramux_adapters.peft_config import FIELDS as LORA_FIELDS
from loramux_adapters.peft_config import check_config
from loramux_adapters.strict_json import depth
from loramux_adapters.tensorfile import TensorInfo
from loramux_adapters.trainable_tokens import FIELDS as TOKENS_FIELDS
from loramux_adapters.trainable_tokens import (
    check_trainable_tokens,
    trainable_tokens_contents,
)
from loramux_adapters.virtual_tokens import (
    CARTRIDGE_FIELDS,
    CPT_FIELDS,
    MULTITASK_FIELDS,
    P_FIELDS,
    PREFIX_FIELDS,
    PROMPT_FIELDS,
    VIRTUAL_TENSORS,
    check_cartridge,
    check_cpt,
    check_multitask,
    check_p_tuning,
    check_prefix,
    check_prompt,
    prefix_contents,
    prompt_contents,
)

MAX_CONFIG_DEPTH = 8


class AdapterConfig(Protocol):
    """A validated config of any method."""

    @property
    def base_model(self) -> str:
        """The base model that it names; empty if none."""


@dataclass(frozen=True, slots=True)
class Kind:
    """How adapters of one method are read."""

    fields: Fields
    check: Callable[[Mapping[str, object]], Any]
    """Parsed `adapter_config.json` -> validated config."""
    contents: Callable[[Any, Mapping[str, TensorInfo]], Contents]
    """Validated config and tensors -> what the adapter changes."""
    own: frozenset[str] = frozenset()
    """Names of tensors that do not belong to a module of the model, such as virtual tokens."""
    prefix: str = PREFIX
    """Prefix of the names of those that do."""


def _virtual(
    fields: Fields,
    check: Callable[[Mapping[str, object]], Any],
    contents: Callable[[Any, Mapping[str, TensorInfo]], Contents],
) -> Kind:
    return Kind(fields, check, contents, VIRTUAL_TENSORS, PROMPT_PREFIX)


KINDS: Mapping[str, Kind] = {
    "LORA": Kind(LORA_FIELDS, check_config, lora_contents),
    "IA3": Kind(IA3_FIELDS, check_ia3, ia3_contents),
    "LN_TUNING": Kind(LN_TUNING_FIELDS, check_ln_tuning, ln_tuning_contents),
    "TRAINABLE_TOKENS": Kind(TOKENS_FIELDS, check_trainable_tokens, trainable_tokens_contents),
    PEFT_TYPE: Kind(BOTTLENECK_FIELDS, check_bottleneck, bottleneck_contents),
    "PROMPT_TUNING": _virtual(PROMPT_FIELDS, check_prompt, prompt_contents),
    "P_TUNING": _virtual(P_FIELDS, check_p_tuning, prompt_contents),
    "CPT": _virtual(CPT_FIELDS, check_cpt, prompt_contents),
    "MULTITASK_PROMPT_TUNING": _virtual(MULTITASK_FIELDS, check_multitask, prompt_contents),
    "PREFIX_TUNING": _virtual(PREFIX_FIELDS, check_prefix, prefix_contents),
    "CARTRIDGE": _virtual(CARTRIDGE_FIELDS, check_cartridge, prefix_contents),
}
"""Value of `peft_type` -> its kind."""


FULL_RANK = frozenset({
    "BOFT", "C3A", "FOURIERFT", "HIRA", "OFT", "RANDLORA", "ROAD", "SHIRA", "SUPERTUNING",
})  # fmt: skip
"""Methods whose update has full rank; packing merges it with the base's weights."""
FOLDED = FULL_RANK | {
    "ADALORA", "BEFT", "DEFT", "DELORA", "GRALORA", "HRA", "LOHA", "LOKR", "MISS", "PVERA",
    "TINYLORA", "UNILORA", "VBLORA", "VERA",
}  # fmt: skip
"""Methods that `loramux_adapters.weights.sources`, which needs numpy, converts when packing."""
FOLDED_FIELDS = {"LORA": frozenset({"use_bdlora"})}
"""Supported methods -> fields that, if on, have the adapter converted as well."""
_MERGE = "merge it into a base of its own with PEFT's merge_and_unload"
_AS_LORA = "convert it to a LoRA with PEFT's save_as_lora"
_BY_STATE = "its effect depends on the hidden state of each token"
_DECOMPOSED = "PEFT decomposes the weights of the base again at each load"
REFUSED: Mapping[str, str] = {
    "ADAMSS": f"{_DECOMPOSED}; {_MERGE}",
    "ADAPTION_PROMPT": "it attends to learned tokens through gates, in some layers only",
    "FROD": f"{_DECOMPOSED}; {_MERGE}",
    "GLORA": f"it multiplies the weights and biases of the base; {_MERGE}",
    "LILY": _BY_STATE,
    "OSF": f"{_DECOMPOSED}; {_MERGE}",
    "PEANUT": f"it applies a network to the weights of the base; {_MERGE}",
    "POLY": "it chooses among its skills by the task of each request",
    "PSOFT": f"{_DECOMPOSED}; {_AS_LORA}",
    "SHADOW": "it is a second model that runs beside the base",
    "WAVEFT": f"its update is a wavelet transform, which is not implemented; {_AS_LORA}",
    "XLORA": _BY_STATE,
}
"""Unsupported methods -> why."""


def is_folded(config: Mapping[str, object]) -> bool:
    """Return whether packing converts the adapter of `config` to another method."""
    method = config.get("peft_type")
    if not isinstance(method, str):
        return False
    if method == "LORA" and config.get("init_lora_weights") in ("pissa", "olora"):
        return True
    return method in FOLDED or any(config.get(name) for name in FOLDED_FIELDS.get(method, ()))


def kind_of(config: Mapping[str, object]) -> Kind:
    """Return the kind of the adapter with the parsed `adapter_config.json` `config`.

    Raises:
        PackageError: Its method is not supported, or the config is malformed.
    """
    if depth(config) > MAX_CONFIG_DEPTH:
        raise invalid("the config", f"is nested more than {MAX_CONFIG_DEPTH} levels deep")
    text(config, "task_type")  # validated here, so that later readers find a string
    name = config.get("peft_type")
    if not isinstance(name, str) or name not in KINDS:
        raise unsupported("peft_type", name, _why_not(name))
    return KINDS[name]


def read_contents(
    config: Mapping[str, object], tensors: Mapping[str, TensorInfo]
) -> tuple[AdapterConfig, Contents]:
    """Return the validated `config`, and what an adapter with `tensors` changes.

    Raises:
        PackageError: It is not supported or malformed; the message names the field or tensor.
    """
    kind = kind_of(config)
    checked: AdapterConfig = kind.check(config)
    of_modules = {name: tensor for name, tensor in tensors.items() if name not in kind.own}
    head, others = take_head(config, of_modules, kind.prefix)
    own = {name: tensor for name, tensor in tensors.items() if name in kind.own}
    task = text(config, "task_type")
    return checked, replace(kind.contents(checked, {**own, **others}), head=head, task=task)


def _why_not(name: object) -> str:
    if isinstance(name, str) and name in FOLDED:
        made = "whole layers with `loramux pack --base`" if name in FULL_RANK else (
            "a LoRA with `loramux pack`"
        )  # fmt: skip
        return f"convert it to {made}"
    if isinstance(name, str) and name in REFUSED:
        return REFUSED[name]
    return f"expected one of {', '.join(repr(each) for each in KINDS)}"
