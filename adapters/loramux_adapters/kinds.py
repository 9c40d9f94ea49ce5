"""The methods whose adapters are served, by what PEFT calls them: how each is read.

A method has a config, which is checked, and says what its tensors mean.
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
    """A checked config, whatever the method."""

    @property
    def base_model(self) -> str:
        """The base model that it names; empty where it names none."""


@dataclass(frozen=True, slots=True)
class Kind:
    """How adapters of one method are read."""

    fields: Fields
    check: Callable[[Mapping[str, object]], Any]
    """Parsed `adapter_config.json` -> checked config."""
    contents: Callable[[Any, Mapping[str, TensorInfo]], Contents]
    """Checked config and tensors -> what the adapter does."""
    own: frozenset[str] = frozenset()
    """Names of tensors that are of no module of the model that it was trained on."""
    prefix: str = PREFIX
    """How names begin of those that are."""


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


WHOLE = frozenset({
    "BOFT", "C3A", "FOURIERFT", "HIRA", "OFT", "RANDLORA", "ROAD", "SHIRA", "SUPERTUNING",
})  # fmt: skip
"""Methods whose change has no low rank, which is folded with the weights of the base."""
FOLDED = WHOLE | {
    "ADALORA", "BEFT", "DEFT", "DELORA", "GRALORA", "HRA", "LOHA", "LOKR", "MISS", "PVERA",
    "TINYLORA", "UNILORA", "VBLORA", "VERA",
}  # fmt: skip
"""Methods that `loramux_adapters.weights.sources` folds, which needs numpy."""
FOLDED_FIELDS = {"LORA": frozenset({"use_bdlora"})}
"""Methods that are served -> fields with which they are folded, too, where they are switched on."""
_MERGE = "merge it into a base of its own with PEFT's merge_and_unload"
_AS_LORA = "make a LoRA of it with PEFT's save_as_lora"
_BY_STATE = "what it does depends on the hidden state of each token"
_DECOMPOSED = "PEFT decomposes the weights of the base anew at each load"
REFUSED: Mapping[str, str] = {
    "ADAMSS": f"{_DECOMPOSED}; {_MERGE}",
    "ADAPTION_PROMPT": "it attends to learned tokens behind gates, in some layers only",
    "FROD": f"{_DECOMPOSED}; {_MERGE}",
    "GLORA": f"it multiplies the weights and biases of the base; {_MERGE}",
    "LILY": _BY_STATE,
    "OSF": f"{_DECOMPOSED}; {_MERGE}",
    "PEANUT": f"it is a network of the weights of the base; {_MERGE}",
    "POLY": "it chooses among its skills by the task of each request",
    "PSOFT": f"{_DECOMPOSED}; {_AS_LORA}",
    "SHADOW": "it is a second model beside the base",
    "WAVEFT": f"what it adds is a transform of wavelets, which is not computed here; {_AS_LORA}",
    "XLORA": _BY_STATE,
}
"""Methods that are not served -> why."""


def is_folded(config: Mapping[str, object]) -> bool:
    """Return whether the adapter of `config` becomes another one when it is packed."""
    method = config.get("peft_type")
    if not isinstance(method, str):
        return False
    if method == "LORA" and config.get("init_lora_weights") in ("pissa", "olora"):
        return True
    return method in FOLDED or any(config.get(name) for name in FOLDED_FIELDS.get(method, ()))


def kind_of(config: Mapping[str, object]) -> Kind:
    """Return the kind of the adapter whose parsed `adapter_config.json` is `config`.

    Raises:
        PackageError: It is of none that is served.
    """
    if depth(config) > MAX_CONFIG_DEPTH:
        raise invalid("the config", f"nests deeper than {MAX_CONFIG_DEPTH}")
    text(config, "task_type")  # whoever asks for it later finds text
    name = config.get("peft_type")
    if not isinstance(name, str) or name not in KINDS:
        raise unsupported("peft_type", name, _why_not(name))
    return KINDS[name]


def read_contents(
    config: Mapping[str, object], tensors: Mapping[str, TensorInfo]
) -> tuple[AdapterConfig, Contents]:
    """Return the checked `config`, and what an adapter of it with `tensors` does.

    Raises:
        PackageError: It is no adapter that is served; the message names the field or the tensor.
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
        made = "whole layers with `loramux pack --base`" if name in WHOLE else (
            "a LoRA with `loramux pack`"
        )  # fmt: skip
        return f"make {made}"
    if isinstance(name, str) and name in REFUSED:
        return REFUSED[name]
    return f"{', '.join(repr(each) for each in KINDS)} are served"
