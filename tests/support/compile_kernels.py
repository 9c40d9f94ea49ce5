"""Compile the kernels of a GPU for an H100, which takes none, and print what became of each.

Those that hold most at a time are compiled for an L4, too: its programs have less memory.

With an argument such as `1/2`, only the first half of them, so that several can be run at once. One
JSON object a line: `name`, `tile` (tokens of a tile; null where there is none), `has_adapter`
(whether for a batch with adapters) and `has_mma` (whether it multiplies matrices).
"""

import json
import sys
from dataclasses import dataclass, replace
from functools import partial
from importlib.resources import files
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from loramux_server.kernels import gpu
from loramux_server.kernels.attention import AttentionForm
from loramux_server.kernels.decoder import Norm
from loramux_server.kernels.draw import Draws
from loramux_server.kernels.experts import ExpertWeights, Pairs
from loramux_server.kernels.gpu.draw import draw_triton
from loramux_server.kernels.gpu.expand import expand_triton
from loramux_server.kernels.gpu.experts import multiply_experts_triton
from loramux_server.kernels.gpu.plan import FILE, Plan
from loramux_server.kernels.gpu.residual_norm import NormScratch, residual_norm_triton
from loramux_server.kernels.gpu.rms_norm import rms_norm_triton
from loramux_server.kernels.gpu.rope_write import HeadNorms, rope_write_triton
from loramux_server.kernels.gpu.shrink import shrink_triton
from loramux_server.kernels.gpu.silu_mul import silu_mul_triton
from loramux_server.kernels.gpu.tiles import PREFILL_TILE, LowRank
from loramux_server.kernels.gpu.write_cache import write_cache_triton
from loramux_server.lora.experts_edit import ExpertPiece, ExpertRows, rows_of
from loramux_server.lora.slab import DTYPES
from tests.support.attention import problem
from tests.support.device_attention import give
from tests.support.low_rank import Residents, residents

DTYPE = torch.bfloat16
TOKENS, WIDTH, HEAD = 20, 256, 64
_WITH_EMPTY_TILES = ("_silu_mul", "_rope_write", "_expand")


@dataclass(frozen=True, slots=True)
class Device:
    """What Triton asks of a driver before it launches anything."""

    number: int
    capability: int
    shared_bytes: int
    """That a program may have."""

    def get_current_device(self) -> int:
        return self.number

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)


H100, L4 = Device(0, 90, 227 << 10), Device(1, 89, 99 << 10)


def main(part: str = "1/1") -> None:
    number, parts = map(int, part.split("/"))
    on = H100
    driver.set_active(on)
    run = JITFunction.run
    tile: int | None = None
    has_adapter = False

    def compiled(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        is_dependent = "IS_DEPENDENT" in kwargs and on is H100
        if is_dependent:  # as there
            kwargs |= {"IS_DEPENDENT": True, "launch_pdl": True}
        kernel = run(self, *args, grid=grid, warmup=True, **kwargs)
        assert kernel.asm["cubin"]
        # Each way through a program has to wait, and some have nothing to do.
        waits = (2 if self.__name__ in _WITH_EMPTY_TILES else 1) * is_dependent
        assert kernel.asm["ptx"].count("griddepcontrol.wait") == waits
        assert kernel.metadata.shared <= on.shared_bytes, (self.__name__, on, kernel.metadata)
        found = {
            "name": self.__name__,
            "tile": tile,
            "has_adapter": has_adapter,
            "has_mma": "mma" in kernel.asm["ptx"],
        }
        print(json.dumps(found), flush=True)
        return kernel

    JITFunction.run = compiled
    if number == 1:
        rms_norm_triton(_zeros(TOKENS, WIDTH), _zeros(WIDTH), 1e-5)
        launch_attention()
        launch_experts()
        launch_draw()
    ways: list[tuple[int, int | None]] = [(1, None), (1, 1), (1, 8), (16, 1), (16, 8), (64, 1)]
    for tile, num_planes in ways[number - 1 :: parts]:
        has_adapter = num_planes is not None
        launch_layers(
            tile, num_planes, has_vectors=(tile, num_planes) in ((1, 8), (16, 1), (64, 1))
        )
    if number == parts:
        on, tile, has_adapter = L4, None, False
        driver.set_active(on)
        launch_largest()


def launch_attention() -> None:
    """Launch attention for decode, in shares, and for prefill, and the write to the cache."""
    chunk = problem([TOKENS, 1], [2 * TOKENS, 1], width=HEAD, value_width=HEAD, dtype=DTYPE)
    given = give(chunk, torch.device("cpu"), size=16)
    form = AttentionForm(scale=0.125, window=16, softcap=30.0)
    for sinks in (None, _zeros(given.q.shape[1])):
        given.decode(replace(form, sinks_H=sinks), shares=2)
        given.prefill(replace(form, sinks_H=sinks))
    # As plans have it for one model, where others are served.
    plans = json.loads(files(gpu).joinpath(FILE).read_text(encoding="utf-8"))
    for blocks in Plan.parse({**plans["default"], **plans["sm_90"]}).decode_attention.values():
        for width, dtype in (
            (128, DTYPE),
            (128, torch.float32),
            (256, DTYPE),
            (256, torch.float32),
            (512, DTYPE),
        ):
            one = problem([1], [2], width=width, value_width=width, dtype=dtype)
            give(one, torch.device("cpu"), size=16).decode(form, shares=2, blocks=blocks)
    for width in (128, 256):  # 128 rows of 64 and of 128 numbers are the widest tiles there are
        wide = problem([TOKENS, 1], [2 * TOKENS, 1], width=width, value_width=width, dtype=DTYPE)
        give(wide, torch.device("cpu"), size=16).prefill(form)
    rows = _zeros(len(given.batch.slot_T), given.keys.shape[1], HEAD)
    write_cache_triton(given.keys, given.values, rows, rows, given.batch.slot_T)


def launch_largest() -> None:
    """Launch what holds most: wide heads, many of them for one of keys, and A for long tiles."""
    for heads, width, dtype in (
        (16, 128, torch.float32),
        (16, 256, DTYPE),
        (8, 256, torch.float32),
        (8, 512, DTYPE),
    ):
        wide = problem(
            [TOKENS, 1], [2 * TOKENS, 1], heads=heads, kv_heads=1, width=width, value_width=width,
            dtype=dtype,
        )  # fmt: skip
        give(wide, torch.device("cpu"), size=8).prefill(AttentionForm(scale=0.125))
    configs = Plan.of(torch.device("cpu")).configs_for(PREFILL_TILE, is_base=False)
    adapters = residents([[64]], [WIDTH], 2048, has_vectors=False)
    shrink = partial(shrink_triton, blocks=configs.shrink)
    tiles = adapters.tiles([(TOKENS, 0)], PREFILL_TILE)
    adapters.gathered(torch.zeros(TOKENS, 2048), tiles, shrink, num_planes=configs.planes)


def launch_experts() -> None:
    """Launch the changes of experts, which rest in any format."""
    key_P, x = torch.arange(TOKENS), _zeros(TOKENS, WIDTH)
    weights = ExpertWeights(torch.zeros(TOKENS, WIDTH, WIDTH, dtype=DTYPE), None)
    changes: list[ExpertRows | None] = []
    for form, dtype in DTYPES.items():
        one = torch.zeros(TOKENS, 24, WIDTH)
        pieces = [ExpertPiece(one, one, 1.0)]
        changes.append(rows_of(pieces, TOKENS, (WIDTH, WIDTH), form, dtype))
    multiply_experts_triton(x, weights, Pairs(key_P, len(changes) + 1), changes)


def launch_draw() -> None:
    """Launch the search for tokens to draw, in a vocabulary of several chunks."""
    logits_RV = torch.zeros(2, 10_000)
    draws = Draws(torch.zeros(2, 5, dtype=torch.float64), is_cut=True)
    draw_triton(logits_RV, torch.zeros(2, dtype=torch.int64), draws)


def launch_layers(size: int, num_planes: int | None, *, has_vectors: bool) -> None:
    """Launch what takes adapters; with one plane it is that of a merged matmul."""

    def made(*widths: int) -> Residents:
        ranks = [[rank] * len(widths) for rank in (8, 16)]
        return residents(ranks, widths, WIDTH, DTYPE, has_vectors=has_vectors)

    heads, halves, whole = made(4 * HEAD, 2 * HEAD, 2 * HEAD), made(WIDTH, WIDTH), made(WIDTH)
    x, y = _zeros(TOKENS, WIDTH), _zeros(TOKENS, 8 * HEAD)
    tiles = heads.tiles([(TOKENS, 0)], size)

    def half(adapters: Residents) -> LowRank | None:
        if num_planes is None:
            return None
        if num_planes == 1:
            return adapters.merged(_zeros(TOKENS, adapters.columns[-1]), x)[1]
        return adapters.gathered(x, tiles, shrink_triton, num_planes)

    weight, head_weight = Norm(_zeros(WIDTH), 1e-5), Norm(_zeros(HEAD), 1e-5)
    cos, slot = _zeros(TOKENS, HEAD), torch.arange(TOKENS)
    q, k, v = (_zeros(TOKENS, count, HEAD) for count in (4, 2, 2))
    expand_triton(y, heads.columns, half(heads), tiles)
    for norms in (None, HeadNorms(head_weight, head_weight)):
        rope_write_triton(y, half(heads), tiles, norms, cos, cos, slot, q, k, v)
    silu_mul_triton(_zeros(TOKENS, 2 * WIDTH), half(halves), tiles, x)
    for norm, out in ((None, None), (weight, x)):
        scratch = NormScratch.make(TOKENS, WIDTH, x.device)
        residual_norm_triton(x, x, half(whole), tiles, norm, out, scratch)


def _zeros(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=DTYPE)


if __name__ == "__main__":
    main(*sys.argv[1:])
