"""The GPU backend.

Legend: T tokens, K input width, N output width, R slab rows, S cache slots, J key and value heads,
H query heads, D key width, E value width.
"""

from collections.abc import Sequence
from contextlib import nullcontext

import torch

from loramux_server.kernels.add_lora import add_lora
from loramux_server.kernels.attention import AttentionBatch, AttentionForm, paged_attention
from loramux_server.kernels.backend import Backend
from loramux_server.kernels.decoder import Decoder, DecoderLayer
from loramux_server.kernels.draw import Draws, draw
from loramux_server.kernels.gpu.attend import most_rows
from loramux_server.kernels.gpu.capacity import power
from loramux_server.kernels.gpu.decode_attention import DecodeScratch, decode_attention_triton
from loramux_server.kernels.gpu.decoder import make_decoder_gpu
from loramux_server.kernels.gpu.device_batch import tile_size
from loramux_server.kernels.gpu.draw import draw_triton
from loramux_server.kernels.gpu.expand import expand_triton
from loramux_server.kernels.gpu.experts import multiply_experts_triton
from loramux_server.kernels.gpu.linear import LinearGpu, make_linear_gpu
from loramux_server.kernels.gpu.plan import KernelConfigs, Plan
from loramux_server.kernels.gpu.prefill_attention import prefill_attention_triton
from loramux_server.kernels.gpu.residual_norm import NormScratch
from loramux_server.kernels.gpu.rms_norm import rms_norm_triton
from loramux_server.kernels.gpu.shrink import shrink_triton
from loramux_server.kernels.gpu.side_stream import SideStream
from loramux_server.kernels.gpu.staged import Staged, Stager
from loramux_server.kernels.gpu.tiles import LowRank
from loramux_server.kernels.gpu.write_cache import write_cache_triton
from loramux_server.kernels.pointwise import rotate, silu_mul
from loramux_server.kernels.projection import Projection
from loramux_server.kernels.step_input import StepInput
from loramux_server.lora.segments import Segments

_QUERY_ROWS = 64
"""Rows of a query tile, if that many fit: one per token and query head of a key head."""


class GpuOperations:
    """The operations that the model calls, for the step that was staged last."""

    def __init__(self, device: torch.device) -> None:
        self.plan = Plan.of(device)
        """Kernel configurations for this device."""
        self._stager = Stager(device, self.plan)
        self._staged: Staged | None = None
        self._device = device
        self._side = SideStream(device)
        self._scratch: dict[tuple[int, int, int], DecodeScratch] = {}
        self._norm_scratch: dict[tuple[int, int], NormScratch] = {}

    @property
    def staged(self) -> Staged:
        """The current step."""
        assert self._staged is not None, "no step is staged"
        return self._staged

    @property
    def configs(self) -> KernelConfigs:
        """Kernel configurations for the current step."""
        return self.plan.configs_for(self.staged.tiles.size, is_base=self.staged.path is None)

    def stage(self, given: StepInput, device: torch.device) -> StepInput:
        """Copy a step's input to the device and make it the current step."""
        del device  # always the one that these operations were created for
        step, self._staged = self._stager.stage(given)
        return step

    def base_and_low_rank(
        self, projection: Projection, x_TK: torch.Tensor
    ) -> tuple[torch.Tensor, LowRank | None]:
        """Return the base output for `x_TK`, and the rest of the LoRA update (None without one)."""
        linear, path = projection.linear, self.staged.path
        if path is None:
            return linear(x_TK), None
        assert projection.a_RK is not None
        assert projection.b_RN is not None
        assert projection.table is not None
        num_parts = len(projection.columns) - 1
        # Layers without a plain weight matrix cannot be extended by A rows.
        is_merged = path.is_merged and projection.extended_EK is not None
        if is_merged:
            assert isinstance(linear, LinearGpu)
            assert projection.extended_EK is not None
            num_rows = min(path.num_rows * num_parts, len(projection.a_RK))
            y_TN, h_TJ = linear.extended(x_TK, projection.extended_EK, num_rows)
            planes_STJ = h_TJ[None]
        else:
            # The shrink kernel reads little and hides behind the base matmul on a second stream.
            # Without a graph, launch overhead dominates, and a second stream only adds to it.
            is_beside = self.staged.uses_graph
            try:
                with self._side.fork() if is_beside else nullcontext():
                    planes_STJ = self._gathered(projection, projection.a_RK, x_TK, path.num_rows)
                y_TN = linear(x_TK)
            finally:  # a failed capture can only be ended after the side stream has joined
                if is_beside:
                    self._side.join()
        low_rank = LowRank(
            planes_STJ, is_merged, projection.b_RN, projection.table, path.has_vectors
        )
        return y_TN, low_rank

    def _gathered(
        self, projection: Projection, a_RK: torch.Tensor, x_TK: torch.Tensor, most_rows: int
    ) -> torch.Tensor:
        """Return h from the `shrink` kernel, for adapters of up to `most_rows` rank rows."""
        num_parts = len(projection.columns) - 1
        assert projection.table is not None
        planes_STJ = torch.empty(
            self.configs.planes, len(x_TK), num_parts * most_rows,
            dtype=torch.float32, device=x_TK.device,
        )  # fmt: skip
        shrink_triton(
            x_TK, a_RK, num_parts, self.staged.tiles, projection.table, planes_STJ,
            blocks=self.configs.shrink,
        )  # fmt: skip
        if self.staged.is_decode:
            return planes_STJ
        return planes_STJ.sum(0, keepdim=True)  # many programs read h, and it is large: sum once

    def project(
        self,
        projection: Projection,
        backend: Backend,
        x_TK: torch.Tensor,
        segments: Segments | None,
    ) -> torch.Tensor:
        """Implement `loramux_server.kernels.projection.project`."""
        del backend, segments
        return self.project_full(projection, x_TK)

    def project_full(self, projection: Projection, x_TK: torch.Tensor) -> torch.Tensor:
        """Return the outputs of the layers for `x_TK`, with LoRA applied."""
        y_TN, low_rank = self.base_and_low_rank(projection, x_TK)
        if low_rank is not None:
            columns, tiles = projection.columns.tolist(), self.staged.tiles
            expand_triton(y_TN, columns, low_rank, tiles, blocks=self.configs.expand)
        return y_TN

    def write_cache(
        self,
        k_SJD: torch.Tensor,
        v_SJE: torch.Tensor,
        k_TJD: torch.Tensor,
        v_TJE: torch.Tensor,
        batch: AttentionBatch,
    ) -> None:
        """Implement `loramux_server.kernels.attention.write_cache`."""
        write_cache_triton(k_SJD, v_SJE, k_TJD, v_TJE, batch.slot_T)

    def paged_attention(
        self,
        q_THD: torch.Tensor,
        k_SJD: torch.Tensor,
        v_SJE: torch.Tensor,
        batch: AttentionBatch,
        form: AttentionForm,
    ) -> torch.Tensor:
        """Implement `loramux_server.kernels.attention.paged_attention`."""
        if batch.bidirectional_T2 is not None:  # the kernels only implement causal attention
            return paged_attention(q_THD, k_SJD, v_SJE, batch, form)
        staged = self.staged.batch
        size = (*q_THD.shape[:2], v_SJE.shape[2])
        out_THE = q_THD.new_empty(size)
        scratch = self._scratch_for(len(staged.context_B), *size[1:])
        blocks = self.plan.attention_of(len(staged.context_B))
        decode_attention_triton(q_THD, k_SJD, v_SJE, staged, form, out_THE, scratch, blocks=blocks)
        if len(staged.tile_start_I):
            prefill_attention_triton(q_THD, k_SJD, v_SJE, staged, form, out_THE)
        return out_THE

    def _scratch_for(self, num_requests: int, num_heads: int, value_width: int) -> DecodeScratch:
        """Return scratch memory for the batch; it is kept, since graphs hold its address."""
        size = (power(num_requests), num_heads, value_width)
        if size not in self._scratch:
            self._scratch[size] = DecodeScratch.make(*size, self.plan.decode_shares, self._device)
        return self._scratch[size]

    def norm_scratch(self, num_tokens: int, width: int) -> NormScratch:
        """Return scratch memory for so many rows; it is kept, likewise."""
        size = (power(num_tokens), width)
        if size not in self._norm_scratch:
            self._norm_scratch[size] = NormScratch.make(*size, self._device)
        return self._norm_scratch[size]

    def draw(
        self, logits_RV: torch.Tensor, likeliest_R: torch.Tensor, draws: Draws
    ) -> torch.Tensor:
        """Do what `loramux_server.kernels.draw.draw` defines, as was measured to be faster."""
        if self.plan.draw is None:
            return draw(logits_RV, likeliest_R, draws)
        return draw_triton(logits_RV, likeliest_R, draws, blocks=self.plan.draw)

    def make_decoder(self, layers: Sequence[DecoderLayer], backend: Backend) -> Decoder:
        """Implement `loramux_server.kernels.decoder.make_decoder`."""
        keys_SJD = layers[0].keys_SJD
        kv_heads, width = keys_SJD.shape[1:]
        num_heads = int(layers[0].qkv.columns[-1]) // width - 2 * kv_heads
        rows = most_rows(width, keys_SJD.itemsize, _QUERY_ROWS)
        self._stager.query_tile = tile_size(num_heads, kv_heads, rows)
        return make_decoder_gpu(layers, backend, self)


def make_gpu_backend(device: torch.device) -> Backend:
    """Return the GPU backend for `device`."""
    of = GpuOperations(device)
    return Backend(
        "triton", make_linear_gpu, add_lora, of.project, of.write_cache, of.paged_attention,
        rms_norm_triton, silu_mul, rotate, of.make_decoder, of.stage, extends=True,
        multiply_experts=multiply_experts_triton, draw=of.draw,
    )  # fmt: skip
