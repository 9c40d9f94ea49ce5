"""Config fields that converted methods have in common."""

from collections.abc import Iterable, Mapping

from loramux_adapters.fields import Fields

_HONOURED = frozenset({
    "peft_type", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern",
    "modules_to_save", "bias",
})  # fmt: skip
_RECORDED = frozenset({
    "task_type", "peft_version", "base_model_name_or_path", "revision", "auto_mapping",
    "inference_mode", "init_weights", "fan_in_fan_out",
})  # fmt: skip


def folded_fields(
    honoured: Iterable[str],
    recorded: Iterable[str],
    *,
    absent: Iterable[str] = (),
    refused: Mapping[str, str] | None = None,
    harmless: Mapping[str, tuple[object, ...]] | None = None,
) -> Fields:
    """Return the fields of a method: its own, and the common ones except `absent`."""
    own = refused or {}
    missing = {*absent, *own}
    return Fields(
        (_HONOURED | set(honoured)) - missing,
        (_RECORDED | set(recorded)) - missing - set(honoured),
        own,
        harmless or {},
    )
