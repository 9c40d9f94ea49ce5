"""A stack of decoder layers on a GPU: the kernel after a matmul also applies LoRA.

A layer has four matmuls, its attention and four kernels. In decode, adapters add no kernel where A
rows are part of the matmuls, and otherwise one per matmul.

Legend: T tokens, K model width, H query heads, D head width, N output width.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from loramux_server.kernels.attention import AttentionBatch
from loramux_server.kernels.decoder import Decoder, DecoderLayer, Norm, make_decoder
from loramux_server.kernels.gpu.linear import LinearGpu
from loramux_server.kernels.gpu.residual_norm import residual_norm_triton
from loramux_server.kernels.gpu.rms_norm import rms_norm_triton
from loramux_server.kernels.gpu.rope_write import HeadNorms, rope_write_triton
from loramux_server.kernels.gpu.silu_mul import silu_mul_triton
from loramux_server.kernels.module_linear import ModuleLinear
from loramux_server.kernels.projection import Projection
from loramux_server.lora.segments import Segments

if TYPE_CHECKING:
    from loramux_server.kernels.backend import Backend
    from loramux_server.kernels.gpu.backend import GpuOperations


def make_decoder_gpu(
    layers: Sequence[DecoderLayer], backend: "Backend", operations: "GpuOperations"
) -> Decoder:
    """Implement `loramux_server.kernels.decoder.make_decoder`."""
    if all(map(_is_served, layers)):
        return DecoderGpu(layers, operations)
    return make_decoder(layers, backend)


def _is_served(layer: DecoderLayer) -> bool:
    projections = (layer.qkv, layer.output, layer.gate_up, layer.down)
    return all(
        isinstance(projection.linear, LinearGpu | ModuleLinear) for projection in projections
    )


class DecoderGpu:
    """`make_decoder` with fused kernels after each matmul."""

    def __init__(self, layers: Sequence[DecoderLayer], operations: "GpuOperations") -> None:
        self._layers = layers
        self._operations = operations

    def __call__(
        self,
        hidden_TK: torch.Tensor,
        cos_TD: torch.Tensor,
        sin_TD: torch.Tensor,
        batch: AttentionBatch,
        segments: Segments | None,
    ) -> torch.Tensor:
        """Implement `loramux_server.kernels.decoder.make_decoder`."""
        del segments  # already staged
        hidden_TK = hidden_TK.clone()
        first = self._layers[0].attention_norm
        x_TK = rms_norm_triton(hidden_TK, first.weight_K, first.epsilon)
        following = [*(layer.attention_norm for layer in self._layers[1:]), None]
        for layer, norm in zip(self._layers, following, strict=True):
            seen_TN = self._attend(layer, x_TK, cos_TD, sin_TD, batch)
            self._add(layer.output, seen_TN, hidden_TK, layer.mlp_norm, x_TK)
            act_TN = self._gate(layer.gate_up, x_TK)
            self._add(layer.down, act_TN, hidden_TK, norm, x_TK)
        return hidden_TK

    def _add(
        self,
        projection: Projection,
        x_TN: torch.Tensor,
        hidden_TK: torch.Tensor,
        norm: Norm | None,
        out_TK: torch.Tensor,
    ) -> None:
        """Add the output of `projection` for `x_TN` to the residual; write its norm to `out_TK`."""
        operations, low_rank, configs = self._operations, None, self._operations.configs
        if operations.staged.is_decode:
            y_TK, low_rank = operations.base_and_low_rank(projection, x_TN)
        else:  # many tokens share an adapter: do not read B once per token
            y_TK = operations.project_full(projection, x_TN)
            configs = operations.plan.configs_for(operations.staged.tiles.size, is_base=True)
        residual_norm_triton(
            hidden_TK, y_TK, low_rank, operations.staged.tiles, norm, out_TK,
            operations.norm_scratch(*hidden_TK.shape), blocks=configs.residual_norm,
        )  # fmt: skip

    def _gate(self, projection: Projection, x_TK: torch.Tensor) -> torch.Tensor:
        """Return `silu(gate) * up` with LoRA applied, as [T, N / 2]."""
        operations = self._operations
        y_TN, low_rank = operations.base_and_low_rank(projection, x_TK)
        act_TN = y_TN.new_empty(len(y_TN), y_TN.shape[1] // 2)
        silu_mul_triton(
            y_TN, low_rank, operations.staged.tiles, act_TN, blocks=operations.configs.silu_mul
        )
        return act_TN

    def _attend(
        self,
        layer: DecoderLayer,
        x_TK: torch.Tensor,
        cos_TD: torch.Tensor,
        sin_TD: torch.Tensor,
        batch: AttentionBatch,
    ) -> torch.Tensor:
        """Return the attention output, as [T, N]; write keys and values to the cache."""
        operations = self._operations
        qkv_TN, low_rank = operations.base_and_low_rank(layer.qkv, x_TK)
        num_tokens, (_, kv_heads, width) = len(x_TK), layer.keys_SJD.shape
        num_heads = qkv_TN.shape[1] // width - 2 * kv_heads
        q_THD = torch.empty(num_tokens, num_heads, width, dtype=x_TK.dtype, device=x_TK.device)
        rope_write_triton(
            qkv_TN, low_rank, operations.staged.tiles, _head_norms(layer),
            cos_TD, sin_TD, batch.slot_T, q_THD, layer.keys_SJD, layer.values_SJD,
            blocks=operations.configs.rope_write,
        )  # fmt: skip
        seen_THD = operations.paged_attention(
            q_THD, layer.keys_SJD, layer.values_SJD, batch, layer.form
        )
        return seen_THD.reshape(num_tokens, -1)


def _head_norms(layer: DecoderLayer) -> HeadNorms | None:
    if layer.query_norm is None or layer.key_norm is None:
        return None
    return HeadNorms(layer.query_norm, layer.key_norm)
