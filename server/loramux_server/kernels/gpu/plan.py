"""How the work of a GPU is cut: numbers for each kind of device, measured once and kept in a file.

Nothing is tried while serving. `plans.json` is written by `benchmarks/gpu/tune.py`; a device that
is not in it takes what is under `default`, which was chosen by reasoning and works everywhere.
"""

import json
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import torch

from loramux_server.kernels.gpu.decode_attention import DecodeBlocks
from loramux_server.kernels.gpu.expand import DEFAULT as EXPAND
from loramux_server.kernels.gpu.expand import Blocks as ExpandBlocks
from loramux_server.kernels.gpu.residual_norm import DEFAULT as NORM
from loramux_server.kernels.gpu.residual_norm import Blocks as NormBlocks
from loramux_server.kernels.gpu.rope_write import DEFAULT as ROPE
from loramux_server.kernels.gpu.rope_write import Blocks as RopeBlocks
from loramux_server.kernels.gpu.shrink import DEFAULT as SHRINK
from loramux_server.kernels.gpu.shrink import Blocks as ShrinkBlocks
from loramux_server.kernels.gpu.silu_mul import DEFAULT as SILU
from loramux_server.kernels.gpu.silu_mul import Blocks as SiluBlocks

FILE = "plans.json"
BLOCKS: dict[str, type[Any]] = {
    "shrink": ShrinkBlocks,
    "expand": ExpandBlocks,
    "rope_write": RopeBlocks,
    "silu_mul": SiluBlocks,
    "residual_norm": NormBlocks,
}
"""Fields of `Cut` that say how a kernel is cut -> what they are made of."""


@dataclass(frozen=True, slots=True)
class Cut:
    """How the kernels that apply adapters are cut, for tiles of one size."""

    planes: int
    """Parts into which the input width is split for h."""
    shrink: ShrinkBlocks = SHRINK
    expand: ExpandBlocks = EXPAND
    rope_write: RopeBlocks = ROPE
    silu_mul: SiluBlocks = SILU
    residual_norm: NormBlocks = NORM

    @staticmethod
    def parse(entry: dict[str, Any]) -> "Cut":
        """Return what an entry of the file describes."""
        blocks = {name: BLOCKS[name](**value) for name, value in entry.items() if name in BLOCKS}
        return Cut(**(entry | blocks))


@dataclass(frozen=True, slots=True)
class Plan:
    """How work is cut on one kind of device."""

    max_spare_rows: int
    """Rank rows of nobody in the batch that a matmul may read rather than leave to a kernel."""
    max_merged_tokens: int
    """Beyond these a matmul is bound by operations, and rows for others are not free."""
    decode_shares: int
    """Parts of a context that are attended to side by side."""
    cuts: dict[int, Cut]
    """Tokens of a tile -> how the rest is cut."""
    decode_attention: DecodeBlocks | None = None
    """None: whatever fits the heads of the model."""

    @staticmethod
    def of(device: torch.device) -> "Plan":
        """Return the plan for `device`."""
        plans = json.loads(files(__package__).joinpath(FILE).read_text(encoding="utf-8"))
        return Plan.parse({**plans["default"], **plans.get(capability(device), {})})

    @staticmethod
    def parse(entry: dict[str, Any]) -> "Plan":
        """Return the plan that an entry of the file describes."""
        attention = entry.get("decode_attention")
        return Plan(
            **entry
            | {
                "cuts": {int(size): Cut.parse(cut) for size, cut in entry["cuts"].items()},
                "decode_attention": DecodeBlocks(**attention) if attention else None,
            }
        )


def capability(device: torch.device) -> str:
    """Return the kind of `device`, such as `sm_90`."""
    if device.type != "cuda":
        return device.type
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"
