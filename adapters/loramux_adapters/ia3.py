"""IA3: learned factors of activations instead of low-rank updates.

Method: Liu et al., "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context
Learning" (arXiv 2205.05638). Fields: `peft.IA3Config`, PEFT 0.21.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from loramux_adapters.contents import Contents, Edit, EditKind
from loramux_adapters.errors import PackageError
from loramux_adapters.fields import (
    Fields,
    boolean,
    invalid,
    path_of,
    refuse_unsupported,
    text,
)
from loramux_adapters.pattern import Pattern
from loramux_adapters.pattern_code import Steps
from loramux_adapters.saved import check_saved_alone, saved_edit, saved_names, without_repeats
from loramux_adapters.targets import Named, is_named, named, not_targeted
from loramux_adapters.tensorfile import TensorInfo

FIELDS = Fields(
    honoured=frozenset({
        "peft_type", "target_modules", "exclude_modules", "feedforward_modules", "modules_to_save",
        "task_type",
    }),
    recorded=frozenset({
        "peft_version", "base_model_name_or_path", "revision", "auto_mapping",
        "inference_mode", "fan_in_fan_out", "init_ia3_weights",
    }),
    refused={},
)  # fmt: skip
_ENDING = ".ia3_l"
_SERVED = f"'{_ENDING}'"


@dataclass(frozen=True, slots=True)
class Ia3Config:
    """What a validated IA3 config says about each module."""

    target_modules: Named | None
    """None means every linear layer."""
    exclude_modules: Named
    feedforward_modules: Named
    base_model: str
    saved: tuple[str, ...] = ()
    """Suffixes of the names of modules that were trained in full."""

    def targets(self, module: str) -> bool:
        """Return whether PEFT would give `module` an adapter."""
        if is_named(module, self.exclude_modules):
            return False
        return self.target_modules is None or is_named(module, self.target_modules)

    def is_feedforward(self, module: str) -> bool:
        """Return whether the factors of `module` multiply its input, not its output."""
        if isinstance(self.feedforward_modules, Pattern):
            return self.feedforward_modules.fullmatch(module)
        # PEFT compares the end of the name, not whole parts of it.
        return any(module.endswith(name) for name in self.feedforward_modules)


def check_ia3(config: Mapping[str, object]) -> Ia3Config:
    """Validate `config`, a parsed `adapter_config.json` of IA3.

    Raises:
        PackageError: A field is malformed (reason INVALID_ADAPTER_CONFIG) or asks for something
            unsupported (UNSUPPORTED_ADAPTER_FEATURE). The message names the field.
    """
    refuse_unsupported(config, FIELDS)
    boolean(config, "fan_in_fan_out")
    targets = config.get("target_modules")
    steps = Steps()
    checked = Ia3Config(
        target_modules=None if targets == "all-linear" else named(config, "target_modules", steps),
        exclude_modules=named(config, "exclude_modules", steps),
        feedforward_modules=named(config, "feedforward_modules", steps),
        base_model=text(config, "base_model_name_or_path"),
        saved=saved_names(config),
    )
    if checked.target_modules == frozenset():
        raise invalid("target_modules", "is empty; name the modules that the adapter changes")
    return checked


def ia3_contents(config: Ia3Config, tensors: Mapping[str, TensorInfo]) -> Contents:
    """Return the contents of `tensors`: factors, and parameters of modules trained in full.

    Raises:
        PackageError: A tensor is neither, or disagrees with `config`.
    """
    factors, others = [], []
    for tensor in without_repeats(tensors, config.saved):
        if tensor.name.endswith(_ENDING):
            factors.append(_edit(config, tensor))
        else:
            others.append(saved_edit(tensor, config.saved, _SERVED))
    check_saved_alone(others, {edit.module for edit in factors})
    return Contents(edits=sorted(factors + others, key=lambda edit: edit.module))


def _edit(config: Ia3Config, tensor: TensorInfo) -> Edit:
    module = path_of(tensor.name).removesuffix(_ENDING)
    if not config.targets(module):
        raise not_targeted(module)
    is_input = config.is_feedforward(module)
    shape = tensor.shape
    if len(shape) != 2 or shape[0 if is_input else 1] != 1:
        wanted = "[1, in_features]" if is_input else "[out_features, 1]"
        raise PackageError(
            f"tensor {tensor.name}: shape {list(shape)} is not {wanted}, as required by "
            "feedforward_modules of adapter_config.json"
        )
    return Edit(module, EditKind.INPUT_FACTOR if is_input else EditKind.OUTPUT_FACTOR, tensor)
