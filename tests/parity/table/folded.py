"""Configs of the methods that become LoRA when they are packed."""

from collections.abc import Collection

from peft import AdaLoraConfig, LoHaConfig, LoKrConfig, PeftConfig, VeraConfig


def configs(names: Collection[str], task: str) -> dict[str, PeftConfig]:
    """Return a config of each for the layers `names`, or for `all-linear`."""
    common = {"task_type": task, "target_modules": names}
    return {
        "adalora": AdaLoraConfig(**common, init_r=6, target_r=3, total_step=9, lora_alpha=12),
        "loha": LoHaConfig(**common, r=3, alpha=5),
        "lokr": LoKrConfig(**common, r=2, alpha=4),
        "vera": VeraConfig(**common, r=6),
    }
