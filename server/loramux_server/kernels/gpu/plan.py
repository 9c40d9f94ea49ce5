"""How the work of a GPU is cut: numbers for each kind of device, measured once and kept in a file.

Nothing is tried while serving. `plans.json` is written by `benchmarks/gpu/tune.py`; a device that
is not in it takes what is under `default`, which was chosen by reasoning and works everywhere.
"""

import json
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

import torch


@dataclass(frozen=True, slots=True)
class Plan:
    """How work is cut on one kind of device."""

    max_spare_rows: int
    """Rank rows of nobody in the batch that a matmul may read rather than leave to a kernel."""
    max_merged_tokens: int
    """Beyond these a matmul is bound by operations, and rows for others are not free."""
    decode_planes: int
    """Parts into which the input width is split for h of a decode step."""
    prefill_planes: int
    decode_shares: int
    """Parts of a context that are attended to side by side."""
    blocks: dict[str, dict[str, int]] = field(default_factory=dict)
    """Kernel -> fields of its `Blocks` that differ from their defaults."""

    @staticmethod
    def of(device: torch.device) -> "Plan":
        """Return the plan for `device`."""
        plans = json.loads(files(__package__).joinpath("plans.json").read_text(encoding="utf-8"))
        return Plan(**{**plans["default"], **plans.get(capability(device), {})})

    def kernel(self, name: str, blocks: type[Any]) -> Any:
        """Return the `blocks` of the kernel called `name`."""
        return blocks(**self.blocks.get(name, {}))


def capability(device: torch.device) -> str:
    """Return the kind of `device`, such as `sm_90`."""
    if device.type != "cuda":
        return device.type
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"
