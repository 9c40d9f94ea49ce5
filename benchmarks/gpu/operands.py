"""Arguments of GPU kernels, and the bytes that each call has to move.

Legend: T tokens, K input width, N output width, R slab rows, S cache slots, J key and value heads,
H query heads, D head width.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from benchmarks.fixture import Shape
from benchmarks.gpu import device as on
from loramux_server.kernels.attention import AttentionBatch, AttentionForm
from loramux_server.kernels.decoder import Norm
from loramux_server.kernels.draw import Draws, draw
from loramux_server.kernels.gpu.decode_attention import DecodeScratch, decode_attention_triton
from loramux_server.kernels.gpu.draw import draw_triton
from loramux_server.kernels.gpu.expand import expand_triton
from loramux_server.kernels.gpu.plan import KernelConfigs, Plan
from loramux_server.kernels.gpu.residual_norm import NormScratch, residual_norm_triton
from loramux_server.kernels.gpu.rope_write import rope_write_triton
from loramux_server.kernels.gpu.shrink import shrink_triton
from loramux_server.kernels.gpu.silu_mul import silu_mul_triton
from loramux_server.kernels.gpu.staged import Staged, Stager
from loramux_server.kernels.gpu.tiles import LowRank
from loramux_server.kernels.step_input import StepInput
from loramux_server.lora.adapter_table import AdapterTable, GroupTable
from loramux_server.lora.row_allocator import GRANULE, RowSize
from loramux_server.lora.segments import Residence, Segments
from loramux_server.wire.weight_format import WeightFormat

Calls = tuple[list[Callable[[], object]], int]
"""Equal calls on separate operands, and the bytes that one of them has to move."""
SCALE = 2.0
"""Scale of every update."""
_BLOCK = 16


@dataclass(frozen=True, slots=True)
class LoraOperands:
    """A step with adapters in turn, for one group of layers."""

    width: int
    outputs: tuple[int, ...]
    ranks: tuple[int, ...]
    """Rank of each adapter."""
    rows: tuple[int, ...]
    """First slab row of each adapter."""
    borders: tuple[int, ...]
    """First token of each adapter, then the number of tokens."""
    staged: Staged
    table: GroupTable
    slabs: list[tuple[torch.Tensor, torch.Tensor]]
    """Copies of the A and B rows, together larger than a cache."""
    x_TK: torch.Tensor
    planes_STJ: torch.Tensor
    """Where h is written."""
    y_TN: torch.Tensor

    @staticmethod
    def make(
        width: int,
        outputs: tuple[int, ...],
        tokens: int,
        ranks: Sequence[int],
        device: torch.device,
        dtype: torch.dtype,
        *,
        chunk: int = 1,
        planes: int = 8,
    ) -> "LoraOperands":
        """Return operands of random numbers for `tokens` tokens and adapters of `ranks`.

        They belong to requests with `chunk` tokens each; h has `planes` planes.
        """
        sizes, num_parts = list(map(RowSize().rows_of, ranks)), len(outputs)
        *rows, num_rows = np.cumsum([0, *sizes]).tolist()
        table = AdapterTable.empty(1, num_rows, num_parts, device)
        for row, size, rank in zip(rows, sizes, ranks, strict=True):
            table.size_A[row // GRANULE] = size
            table.rank_GAP[:, row // GRANULE] = rank
            table.scale_GAP[:, row // GRANULE] = SCALE
        borders = np.linspace(0, tokens, len(ranks) + 1).astype(int).tolist()
        scale_GP = np.full((1, num_parts), SCALE, np.float32)
        segments = Segments.build(
            borders[:-1],
            borders[1:],
            [Residence(row, size, WeightFormat.FLOAT32, np.full((1, num_parts), rank, np.int32),
                       scale_GP)
             for row, size, rank in zip(rows, sizes, ranks, strict=True)],
        )  # fmt: skip
        row_bytes = (num_parts * width + sum(outputs)) * dtype.itemsize
        slabs = [
            (
                torch.randn(num_parts * num_rows, width, dtype=dtype, device=device),
                torch.randn(num_rows, sum(outputs), dtype=dtype, device=device),
            )
            for _ in range(on.copies_needed(device, num_rows * row_bytes))
        ]
        return LoraOperands(
            width,
            outputs,
            tuple(ranks),
            tuple(rows),
            tuple(borders),
            stage(
                [chunk] * (tokens // chunk),
                [max(chunk, _BLOCK)] * (tokens // chunk),
                device,
                segments,
            ),
            table.group(0),
            slabs,
            torch.randn(tokens, width, dtype=dtype, device=device),
            torch.randn(planes, tokens, num_parts * max(sizes), device=device),
            torch.randn(tokens, sum(outputs), dtype=dtype, device=device),
        )

    @property
    def num_rows(self) -> int:
        """Total rank rows of all adapters."""
        return sum(self.ranks)

    @property
    def columns(self) -> list[int]:
        """Borders between the output columns of the parts."""
        return [0, *itertools.accumulate(self.outputs)]


def groups(shape: Shape) -> dict[str, tuple[int, tuple[int, ...]]]:
    """Return (in_features, out_features of each part) of the matmuls of a layer."""
    features = shape.features()
    kv = features["k_proj"][1]
    return {
        "qkv": (shape.hidden, (shape.hidden, kv, kv)),
        "o": (shape.hidden, (shape.hidden,)),
        "gate_up": (shape.hidden, (shape.intermediate, shape.intermediate)),
        "down": (shape.intermediate, (shape.hidden,)),
    }


def stage(
    queries: list[int], contexts: list[int], device: torch.device, segments: Segments | None
) -> Staged:
    """Return a step of requests with these numbers of new and total tokens, on the device."""
    blocks = [-(-context // _BLOCK) for context in contexts]
    table = np.zeros((len(queries), max(blocks)), np.int32)
    order = np.random.default_rng(0).permutation(sum(blocks)).astype(np.int32)
    slots: list[int] = []
    for row, (count, context) in enumerate(zip(queries, contexts, strict=True)):
        table[row, : blocks[row]], order = order[: blocks[row]], order[blocks[row] :]
        at = np.arange(context - count, context)
        slots += (table[row, at // _BLOCK].astype(np.int64) * _BLOCK + at % _BLOCK).tolist()
    tokens = torch.zeros(sum(queries), dtype=torch.int64)
    batch = AttentionBatch(
        query_start_B=np.cumsum([0, *queries], dtype=np.int32),
        context_B=np.array(contexts, np.int32),
        table_BM=table,
        block_size=_BLOCK,
        slot_T=torch.tensor(slots),
    )
    given = StepInput(tokens, tokens, tokens[: len(queries)], batch, segments)
    return Stager(device, replace(Plan.of(device), max_spare_rows=0)).stage(given)[1]


def attention_calls(
    shape: Shape, device: torch.device, dtype: torch.dtype, batch: int, context: int, plan: Plan
) -> Calls:
    """Return decode attention over `batch` contexts of `context` tokens."""
    width = shape.hidden // shape.heads
    staged = stage([1] * batch, [context] * batch, device, None)
    num_slots = batch * -(-context // _BLOCK) * _BLOCK
    moved = 2 * batch * context * shape.kv_heads * width * dtype.itemsize
    # A step may have more rows than requests.
    rows = len(staged.batch.context_B)
    q_THD = torch.randn(rows, shape.heads, width, dtype=dtype, device=device)
    form = AttentionForm(width**-0.5)
    size = (2, num_slots, shape.kv_heads, width)
    out_THD = torch.empty_like(q_THD)
    scratch = DecodeScratch.make(rows, shape.heads, width, plan.decode_shares, device)
    calls: list[Callable[[], object]] = []
    for _ in range(on.copies_needed(device, moved)):
        k_SJD, v_SJD = torch.randn(size, dtype=dtype, device=device).unbind()
        calls.append(
            partial(
                decode_attention_triton,
                q_THD,
                k_SJD,
                v_SJD,
                staged.batch,
                form,
                out_THD,
                scratch,
                blocks=plan.attention_of(rows),
            )
        )
    return calls, moved


def draw_calls(shape: Shape, device: torch.device, batch: int, plan: Plan) -> Calls:
    """Return draws of a token for each of `batch` requests with a temperature and top-p."""
    moved = 4 * batch * shape.vocab
    row_R5 = torch.tensor([[1 / 0.8, 0, 0.9, -float("inf"), 0.5]], dtype=torch.float64)
    draws = Draws(row_R5.repeat(batch, 1).to(device), is_cut=True)
    drawing = partial(draw_triton, blocks=plan.draw) if plan.draw else draw
    calls: list[Callable[[], object]] = []
    for _ in range(on.copies_needed(device, moved)):
        logits_RV = torch.randn(batch, shape.vocab, device=device)
        calls.append(partial(drawing, logits_RV, logits_RV.argmax(-1), draws))
    return calls, moved


def lora_calls(
    group: str, shape: Shape, of: LoraOperands, plan: Plan, *, is_base: bool = False
) -> dict[str, Calls]:
    """Return the kernels that adapters need in `group`, each by its name.

    With `is_base`, kernels that the base also needs run without adapters.
    """
    tokens, item = len(of.x_TK), of.x_TK.element_size()
    num_parts, outputs = len(of.outputs), sum(of.outputs)
    device, dtype = of.x_TK.device, of.x_TK.dtype
    planes_STJ, y_TN, tiles = of.planes_STJ, of.y_TN, of.staged.tiles
    configs = plan.configs_for(tiles.size, is_base=is_base)

    def low_rank(b_RN: torch.Tensor) -> LowRank | None:
        return None if is_base else LowRank(planes_STJ, False, b_RN, of.table)

    a_bytes = num_parts * of.num_rows * of.width * item
    b_bytes = of.num_rows * outputs * item
    h_bytes = planes_STJ.nbytes
    calls: dict[str, Calls] = {
        "shrink": (
            [partial(shrink_triton, of.x_TK, a, num_parts, tiles, of.table, planes_STJ,
                     blocks=configs.shrink)
             for a, _ in of.slabs],
            a_bytes + of.x_TK.nbytes + h_bytes,
        ),
        "expand": (
            [partial(expand_triton, y_TN, of.columns, low_rank(b), tiles, blocks=configs.expand)
             for _, b in of.slabs],
            b_bytes + h_bytes + 2 * y_TN.nbytes,
        ),
    }  # fmt: skip
    if group == "qkv":
        calls["rope_write"] = _rope(shape, of, low_rank, b_bytes + h_bytes, configs)
    elif group == "gate_up":
        out_TN = torch.empty(tokens, outputs // 2, dtype=dtype, device=device)
        calls["silu_mul"] = (
            [
                partial(silu_mul_triton, y_TN, low_rank(b), tiles, out_TN, blocks=configs.silu_mul)
                for _, b in of.slabs
            ],
            b_bytes + h_bytes + y_TN.nbytes + out_TN.nbytes,
        )
    else:
        hidden_TK, out_TK = torch.zeros_like(y_TN), torch.zeros_like(y_TN)
        norm = Norm(torch.ones(outputs, dtype=dtype, device=device), 1e-5)
        scratch = NormScratch.make(tokens, outputs, device)
        calls["residual_norm"] = (
            [partial(residual_norm_triton, hidden_TK, y_TN, low_rank(b), tiles, norm, out_TK,
                     scratch, blocks=configs.residual_norm)
             for _, b in of.slabs],
            b_bytes + h_bytes + 4 * y_TN.nbytes,
        )  # fmt: skip
    return calls


def _rope(
    shape: Shape,
    of: LoraOperands,
    low_rank: Callable[[torch.Tensor], LowRank | None],
    read: int,
    configs: KernelConfigs,
) -> Calls:
    y_TN, width, tokens = of.y_TN, shape.hidden // shape.heads, len(of.x_TK)
    device, dtype = y_TN.device, y_TN.dtype
    slots = of.staged.batch.table_BM.numel() * _BLOCK
    k_SJD, v_SJD = torch.zeros(2, slots, shape.kv_heads, width, dtype=dtype, device=device).unbind()
    q_THD = torch.empty(tokens, shape.heads, width, dtype=dtype, device=device)
    angle_TD = torch.randn(tokens, width, dtype=dtype, device=device)
    slot_T = of.staged.batch.slot_T
    calls: list[Callable[[], object]] = [
        partial(
            rope_write_triton, y_TN, low_rank(b), of.staged.tiles, None, angle_TD, angle_TD, slot_T,
            q_THD, k_SJD, v_SJD, blocks=configs.rope_write,
        )
        for _, b in of.slabs
    ]  # fmt: skip
    return calls, read + 2 * y_TN.nbytes + 2 * angle_TD.nbytes
