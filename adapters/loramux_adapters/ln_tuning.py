"""Norms trained in full: `LN_TUNING`.

Method: Zhao et al., "Tuning LayerNorm in Attention" (arXiv 2312.11420). Fields:
`peft.LNTuningConfig`, PEFT 0.21.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from loramux_adapters.contents import Contents, Edit, EditKind
from loramux_adapters.fields import Fields, path_of, refuse_unsupported, text
from loramux_adapters.pattern_code import Steps
from loramux_adapters.saved import saved_edit, saved_names, without_repeats
from loramux_adapters.targets import Named, is_named, named, not_targeted
from loramux_adapters.tensorfile import TensorInfo

FIELDS = Fields(
    honoured=frozenset({
        "peft_type", "target_modules", "exclude_modules", "modules_to_save", "task_type",
    }),
    recorded=frozenset({
        "peft_version", "base_model_name_or_path", "revision", "auto_mapping",
        "inference_mode",
    }),
    refused={},
)  # fmt: skip
_INFIX = ".ln_tuning_layers."
_SERVED = f"'{_INFIX}weight', '{_INFIX}bias'"


@dataclass(frozen=True, slots=True)
class LnTuningConfig:
    """What a validated config of this method says."""

    target_modules: Named
    """The norms."""
    exclude_modules: Named
    base_model: str
    saved: tuple[str, ...] = ()
    """Suffixes of the names of other modules that were trained in full."""

    def targets(self, module: str) -> bool:
        """Return whether PEFT would train `module`."""
        is_excluded = is_named(module, self.exclude_modules)
        return not is_excluded and is_named(module, self.target_modules)


def check_ln_tuning(config: Mapping[str, object]) -> LnTuningConfig:
    """Validate `config`, a parsed `adapter_config.json` of this method.

    Raises:
        PackageError: A field is malformed or asks for something unsupported.
    """
    refuse_unsupported(config, FIELDS)
    steps = Steps()
    return LnTuningConfig(
        target_modules=named(config, "target_modules", steps),
        exclude_modules=named(config, "exclude_modules", steps),
        base_model=text(config, "base_model_name_or_path"),
        saved=saved_names(config),
    )


def ln_tuning_contents(config: LnTuningConfig, tensors: Mapping[str, TensorInfo]) -> Contents:
    """Return the contents of `tensors`: parameters of norms and of modules trained in full.

    Raises:
        PackageError: A tensor is neither, or disagrees with `config`.
    """
    edits = []
    for tensor in without_repeats(tensors, config.saved):
        module, infix, parameter = path_of(tensor.name).rpartition(_INFIX)
        if not infix or "." in parameter:
            edits.append(saved_edit(tensor, config.saved, _SERVED))
            continue
        if not config.targets(module):
            raise not_targeted(module)
        edits.append(Edit(module, EditKind.PARAMETER, tensor, parameter))
    return Contents(edits=sorted(edits, key=lambda edit: (edit.module, edit.parameter)))
