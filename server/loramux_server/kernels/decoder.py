"""A stack of decoder layers, built from a backend's operations.

Legend: T tokens, K model width, D head width, S cache slots, J key and value heads.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

from loramux_server.kernels.attention import AttentionBatch, AttentionForm
from loramux_server.kernels.projection import Projection
from loramux_server.lora.segments import Segments

if TYPE_CHECKING:
    from loramux_server.kernels.backend import Backend


@dataclass(frozen=True, slots=True)
class Norm:
    """An RMS norm."""

    weight_K: torch.Tensor
    epsilon: float


@dataclass(frozen=True, slots=True)
class DecoderLayer:
    """One pre-norm layer: attention, then a gated MLP, each added to the residual stream."""

    attention_norm: Norm
    qkv: Projection
    query_norm: Norm | None
    key_norm: Norm | None
    """Per-head norms (QK norm), applied before RoPE."""
    keys_SJD: torch.Tensor
    values_SJD: torch.Tensor
    form: AttentionForm
    output: Projection
    mlp_norm: Norm
    gate_up: Projection
    down: Projection


class Decoder(Protocol):
    """A stack of layers, ready to be called."""

    def __call__(
        self,
        hidden_TK: torch.Tensor,
        cos_TD: torch.Tensor,
        sin_TD: torch.Tensor,
        batch: AttentionBatch,
        segments: Segments | None,
    ) -> torch.Tensor:
        """Return the output of the last layer for `hidden_TK`, as [T, K]."""


def make_decoder(layers: Sequence[DecoderLayer], backend: "Backend") -> Decoder:
    """Return a function that runs `layers` in sequence; see `decode_layer`."""

    def run(
        hidden_TK: torch.Tensor,
        cos_TD: torch.Tensor,
        sin_TD: torch.Tensor,
        batch: AttentionBatch,
        segments: Segments | None,
    ) -> torch.Tensor:
        for layer in layers:
            hidden_TK = decode_layer(layer, backend, hidden_TK, cos_TD, sin_TD, batch, segments)
        return hidden_TK

    return run


def decode_layer(
    layer: DecoderLayer,
    backend: "Backend",
    hidden_TK: torch.Tensor,
    cos_TD: torch.Tensor,
    sin_TD: torch.Tensor,
    batch: AttentionBatch,
    segments: Segments | None,
) -> torch.Tensor:
    """Return the output of one layer for `hidden_TK`; write its keys and values to the cache.

    Semantics, where each projection includes its adapters' changes:

        q, k, v = qkv(norm(hidden))
        hidden = hidden + output(attention(rotate(norm(q)), rotate(norm(k)), v))
        hidden = hidden + down(silu(gate(norm(hidden))) * up(norm(hidden)))
    """

    def norm(norm: Norm, x: torch.Tensor) -> torch.Tensor:
        return backend.rms_norm(x, norm.weight_K, norm.epsilon)

    def project(projection: Projection, x_TK: torch.Tensor) -> torch.Tensor:
        return backend.project(projection, backend, x_TK, segments)

    num_tokens, (_, kv_heads, width) = len(hidden_TK), layer.keys_SJD.shape
    qkv_TN = project(layer.qkv, norm(layer.attention_norm, hidden_TK))
    q_TN, k_TN, v_TN = qkv_TN.tensor_split(
        (qkv_TN.shape[1] - 2 * kv_heads * width, qkv_TN.shape[1] - kv_heads * width), dim=1
    )
    q_THD, k_TJD, v_TJD = (x.view(num_tokens, -1, width) for x in (q_TN, k_TN, v_TN))
    if layer.query_norm and layer.key_norm:
        q_THD, k_TJD = norm(layer.query_norm, q_THD), norm(layer.key_norm, k_TJD)
    backend.rotate(q_THD, k_TJD, cos_TD, sin_TD)
    backend.write_cache(layer.keys_SJD, layer.values_SJD, k_TJD, v_TJD, batch)
    seen_THD = backend.paged_attention(q_THD, layer.keys_SJD, layer.values_SJD, batch, layer.form)
    hidden_TK = hidden_TK + project(layer.output, seen_THD.reshape(num_tokens, -1))
    gate_up_TN = project(layer.gate_up, norm(layer.mlp_norm, hidden_TK))
    return hidden_TK + project(layer.down, backend.silu_mul(gate_up_TN))
