"""Tuned kernel configurations for each kind of GPU, measured once and kept in a file.

Nothing is tuned while serving. `plans.json` is written by `benchmarks/gpu/tune.py`; a device that
is not in it uses the entry `default`, which was chosen by reasoning and works everywhere.
"""

import json
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

import torch

from loramux_server.kernels.gpu.decode_attention import DecodeBlocks
from loramux_server.kernels.gpu.draw import Blocks as DrawBlocks
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
"""Fields of `KernelConfigs` that configure one kernel -> their classes."""


@dataclass(frozen=True, slots=True)
class KernelConfigs:
    """Configurations of the kernels that apply adapters, for one tile size."""

    planes: int = 1
    """Parts into which the input width is split for h (split-K)."""
    shrink: ShrinkBlocks = SHRINK
    expand: ExpandBlocks = EXPAND
    rope_write: RopeBlocks = ROPE
    silu_mul: SiluBlocks = SILU
    residual_norm: NormBlocks = NORM

    @staticmethod
    def parse(entry: dict[str, Any]) -> "KernelConfigs":
        """Return the configurations in an entry of the file."""
        blocks = {name: BLOCKS[name](**value) for name, value in entry.items() if name in BLOCKS}
        return KernelConfigs(**(entry | blocks))


@dataclass(frozen=True, slots=True)
class Plan:
    """All configurations for one kind of device."""

    max_spare_rows: int
    """Most rank rows unused by the batch that the merged matmul may read; else `shrink` runs."""
    max_merged_tokens: int
    """Most tokens of the merged matmul: with more it is compute-bound, and unused rows cost."""
    decode_shares: int
    """Most parts of a context that decode attention processes in parallel."""
    configs: dict[int, KernelConfigs]
    """Tile size in tokens -> kernel configurations where tokens have adapters."""
    base_configs: dict[int, KernelConfigs]
    """The same where no token has one."""
    decode_attention: dict[int, DecodeBlocks] = field(default_factory=dict)
    """Most requests of a step -> its configuration; larger steps use that of the largest."""
    draw: DrawBlocks | None = None
    """Configuration of `draw_triton`; None: `kernels.draw` sorts, as where nothing was measured."""

    def configs_for(self, tile: int, *, is_base: bool) -> KernelConfigs:
        """Return the kernel configurations for tiles of `tile` tokens."""
        return (self.base_configs if is_base else self.configs)[tile]

    def attention_of(self, requests: int) -> DecodeBlocks | None:
        """Return the decode attention's configuration for `requests`; None: derive from shapes."""
        fitting = [most for most in self.decode_attention if most >= requests]
        most = min(fitting) if fitting else max(self.decode_attention, default=0)
        return self.decode_attention.get(most)

    @staticmethod
    def of(device: torch.device) -> "Plan":
        """Return the plan for `device`."""
        plans = json.loads(files(__package__).joinpath(FILE).read_text(encoding="utf-8"))
        return Plan.parse({**plans["default"], **plans.get(capability(device), {})})

    @staticmethod
    def parse(entry: dict[str, Any]) -> "Plan":
        """Return the plan in an entry of the file."""
        attention = entry.get("decode_attention", {})
        tables: dict[str, Any] = {
            table: {int(size): KernelConfigs.parse(values) for size, values in entry[table].items()}
            for table in ("configs", "base_configs")
        }
        tables["decode_attention"] = {
            int(most): DecodeBlocks(**blocks) for most, blocks in attention.items()
        }
        tables["draw"] = DrawBlocks(**entry["draw"]) if entry.get("draw") else None
        return Plan(**entry | tables)


def capability(device: torch.device) -> str:
    """Return the kind of `device`, such as `sm_90`."""
    if device.type != "cuda":
        return device.type
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"
