"""The methods whose adapters are served, by what PEFT calls them: how each is read.

A method has a config, which is checked, and says what its tensors mean.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from loramux_adapters.contents import Contents
from loramux_adapters.fields import Fields, invalid, unsupported
from loramux_adapters.ia3 import FIELDS as IA3_FIELDS
from loramux_adapters.ia3 import check_ia3, ia3_contents
from loramux_adapters.lora_contents import lora_contents
from loramux_adapters.peft_config import FIELDS as LORA_FIELDS
from loramux_adapters.peft_config import check_config
from loramux_adapters.strict_json import depth
from loramux_adapters.tensorfile import TensorInfo
from loramux_adapters.virtual_tokens import (
    MULTITASK_FIELDS,
    P_FIELDS,
    PREFIX_FIELDS,
    PROMPT_FIELDS,
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


KINDS: Mapping[str, Kind] = {
    "LORA": Kind(LORA_FIELDS, check_config, lora_contents),
    "IA3": Kind(IA3_FIELDS, check_ia3, ia3_contents),
    "PROMPT_TUNING": Kind(PROMPT_FIELDS, check_prompt, prompt_contents),
    "P_TUNING": Kind(P_FIELDS, check_p_tuning, prompt_contents),
    "MULTITASK_PROMPT_TUNING": Kind(MULTITASK_FIELDS, check_multitask, prompt_contents),
    "PREFIX_TUNING": Kind(PREFIX_FIELDS, check_prefix, prefix_contents),
}
"""Value of `peft_type` -> its kind."""


def kind_of(config: Mapping[str, object]) -> Kind:
    """Return the kind of the adapter whose parsed `adapter_config.json` is `config`.

    Raises:
        PackageError: It is of none that is served.
    """
    if depth(config) > MAX_CONFIG_DEPTH:
        raise invalid("the config", f"nests deeper than {MAX_CONFIG_DEPTH}")
    name = config.get("peft_type")
    if not isinstance(name, str) or name not in KINDS:
        served = ", ".join(repr(each) for each in KINDS)
        raise unsupported("peft_type", name, f"{served} are served")
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
    return checked, kind.contents(checked, tensors)
