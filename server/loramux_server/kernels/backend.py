"""Selects the implementation of each operation of a model's layers: its definition or a faster one.

Other operations on logits are selected by their device: `engine.sampler`,
`kernels.prompt_logprobs`.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from loramux_server.kernels.add_lora import add_lora
from loramux_server.kernels.attention import (
    AttentionBatch,
    AttentionForm,
    paged_attention,
    write_cache,
)
from loramux_server.kernels.decoder import Decoder, DecoderLayer, make_decoder
from loramux_server.kernels.delta_rule import delta_rule
from loramux_server.kernels.draw import Draws, draw
from loramux_server.kernels.experts import ExpertLinears, Pairs, multiply_experts
from loramux_server.kernels.linear import Linear, make_linear
from loramux_server.kernels.pointwise import rms_norm, rotate, silu_mul
from loramux_server.kernels.projection import Projection, project
from loramux_server.kernels.row_attention import Context
from loramux_server.kernels.saved_linear import SavedLinear, make_saved_linear
from loramux_server.kernels.state_space import state_space
from loramux_server.kernels.step_input import StepInput, stage
from loramux_server.kernels.weight_storage import SUPPORTED_QUANTIZATIONS, Quantization
from loramux_server.lora.experts_edit import ExpertRows
from loramux_server.lora.segments import Int32, Segments


class AddLora(Protocol):
    """The segmented low-rank matmul; see `kernels.add_lora`."""

    def __call__(
        self,
        y_TN: torch.Tensor,
        x_TK: torch.Tensor,
        a_RK: torch.Tensor,
        b_RN: torch.Tensor,
        columns: Int32,
        segments: Segments,
        group: int,
    ) -> None:
        """Add each segment's low-rank update to `y_TN`, in place."""


class Project(Protocol):
    """Linear layers with LoRA applied; see `kernels.projection`."""

    def __call__(
        self,
        projection: Projection,
        backend: "Backend",
        x_TK: torch.Tensor,
        segments: Segments | None,
    ) -> torch.Tensor:
        """Return the outputs of the layers of `projection` for `x_TK`."""


class WriteCache(Protocol):
    """Writing keys and values to the KV cache; see `kernels.attention`."""

    def __call__(
        self,
        k_SJD: torch.Tensor,
        v_SJE: torch.Tensor,
        k_TJD: torch.Tensor,
        v_TJE: torch.Tensor,
        batch: AttentionBatch,
    ) -> None:
        """Write the batch's keys and values to their slots."""


class PagedAttention(Protocol):
    """Attention over a paged KV cache; see `kernels.attention`."""

    def __call__(
        self,
        q_THD: torch.Tensor,
        k_SJD: torch.Tensor,
        v_SJE: torch.Tensor,
        batch: AttentionBatch,
        form: AttentionForm,
    ) -> torch.Tensor:
        """Return the attention output of each token over its request's context."""


class MakeLinear(Protocol):
    """A linear layer with frozen weights; see `kernels.linear`."""

    def __call__(self, weight_NK: torch.Tensor, bias_N: torch.Tensor | None) -> Linear:
        """Return the layer with these weights."""


class MakeSavedLinear(Protocol):
    """A linear layer with an adapter's own weight; see `kernels.saved_linear`."""

    def __call__(self, weight_NK: torch.Tensor, dtype: torch.dtype) -> SavedLinear:
        """Return the layer with this weight, stored in `dtype`."""


class MultiplyExperts(Protocol):
    """An expert matmul with LoRA applied; see `kernels.experts`."""

    def __call__(
        self,
        x_PK: torch.Tensor,
        linears: ExpertLinears,
        pairs: Pairs,
        changes: Sequence[ExpertRows | None],
    ) -> torch.Tensor:
        """Return the output of each pair's expert for its input."""


class DeltaRule(Protocol):
    """Linear attention for one token per request; see `kernels.delta_rule`."""

    def __call__(
        self,
        q_TJK: torch.Tensor,
        k_TJK: torch.Tensor,
        v_THV: torch.Tensor,
        decay_THK: torch.Tensor,
        beta_TH: torch.Tensor,
        state_SHKV: torch.Tensor,
        read_T: torch.Tensor,
        write_T: torch.Tensor,
    ) -> torch.Tensor:
        """Update each request's state with its token and return the state's output."""


class StateSpace(Protocol):
    """State space model for one token per request; see `kernels.state_space`."""

    def __call__(
        self,
        x_THP: torch.Tensor,
        decay_TH: torch.Tensor,
        b_TGN: torch.Tensor,
        c_TGN: torch.Tensor,
        state_SHPN: torch.Tensor,
        read_T: torch.Tensor,
        write_T: torch.Tensor,
    ) -> torch.Tensor:
        """Update each request's state with its token and return the state's output."""


class RowAttention(Protocol):
    """Attention for one token per request; see `kernels.row_attention`."""

    def __call__(
        self, q_BHD: torch.Tensor, contexts: Sequence[Context], scale: float
    ) -> torch.Tensor:
        """Return the attention output of each request's token."""


class Draw(Protocol):
    """Sampling on the device; see `kernels.draw`."""

    def __call__(
        self, logits_RV: torch.Tensor, likeliest_R: torch.Tensor, draws: Draws
    ) -> torch.Tensor:
        """Return the token of each row."""


@dataclass(frozen=True, slots=True)
class Backend:
    """The operations of one kind of device."""

    name: str
    make_linear: MakeLinear
    add_lora: AddLora
    project: Project
    write_cache: WriteCache
    paged_attention: PagedAttention
    rms_norm: Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]
    silu_mul: Callable[[torch.Tensor], torch.Tensor]
    rotate: Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], None]
    make_decoder: Callable[[Sequence[DecoderLayer], "Backend"], Decoder]
    stage: Callable[[StepInput, torch.device], StepInput] = stage
    """Copies a step's input to the device."""
    make_saved_linear: MakeSavedLinear = make_saved_linear
    multiply_experts: MultiplyExperts = multiply_experts
    delta_rule: DeltaRule = delta_rule
    state_space: StateSpace = state_space
    draw: Draw = draw
    """Sampling in a step; `engine.sampler` uses `kernels.cpu.draw` on a CPU."""
    row_attention: RowAttention | None = None
    """None where the model's own attention runs, one request at a time."""
    takes_experts: bool = False
    """Whether each expert's weights are given to `make_linear`."""
    extends: bool = False
    """Whether A rows are stored directly after the base weights."""
    is_deterministic: bool = False
    """Whether a token's result is bit-identical for every number of tokens in the batch."""


DEFINITIONS = Backend(
    "torch", make_linear, add_lora, project, write_cache, paged_attention, rms_norm, silu_mul,
    rotate, make_decoder,
)  # fmt: skip
"""Plain torch, on any device."""


def resolve(name: str, device: torch.device) -> str:
    """Return the name of the backend called `name`; `auto` means the fastest one for `device`."""
    if name != "auto":
        return name
    return "cpu" if device.type == "cpu" else "triton"


def choose_backend(
    name: str,
    device: torch.device,
    quantization: Quantization = Quantization.NONE,
    *,
    is_deterministic: bool = False,
) -> Backend:
    """Return the backend called `name`; `auto` means the fastest one for `device`.

    Args:
        name: The backend: `auto`, `cpu`, `triton` or `torch`.
        device: The device that it runs on.
        quantization: How the CPU backend stores weights; the others take them as they are.
        is_deterministic: Whether the CPU backend sums in the same order for every number of
            tokens; the others have no deterministic mode.

    Raises:
        ValueError: The backend does not support `device`, `quantization` or deterministic mode, or
            its package is missing.
    """
    name = resolve(name, device)
    if is_deterministic and name != "cpu":
        raise ValueError(f"kernels {name!r} have no deterministic mode; use kernels 'cpu'")
    if name == "torch":
        return DEFINITIONS
    if name == "triton":
        return _triton(device)
    if device.type != "cpu":
        raise ValueError(f"kernels 'cpu' do not run on device {device}")
    if quantization not in SUPPORTED_QUANTIZATIONS:
        raise ValueError(
            f"quantization {str(quantization)!r} is not supported by kernels 'cpu'; expected one "
            f"of {', '.join(SUPPORTED_QUANTIZATIONS)}, or kernels 'torch', which use torchao"
        )
    # Imported only when used: compiling takes a second or two.
    from loramux_server.kernels.cpu.backend import make_cpu_backend

    return make_cpu_backend(quantization, is_deterministic=is_deterministic)


def _triton(device: torch.device) -> Backend:
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(
            f"kernels 'triton' run on a CUDA device, not on {device}; with TRITON_INTERPRET=1 they "
            "run anywhere, for tests"
        )
    try:
        from loramux_server.kernels.gpu.backend import make_gpu_backend
    except ImportError as error:
        raise ValueError(f"kernels 'triton' need the package triton: {error}") from None
    return make_gpu_backend(device)
