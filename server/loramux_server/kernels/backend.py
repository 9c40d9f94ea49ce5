"""The one place that chooses between a definition and a faster form of it."""

from dataclasses import dataclass
from typing import Protocol

import torch

from loramux_server.kernels.add_lora import add_lora
from loramux_server.kernels.attention import AttentionBatch, AttentionForm, paged_attention
from loramux_server.kernels.linear import Linear, make_linear
from loramux_server.lora.segments import Segments


class AddLora(Protocol):
    """The segmented low-rank matmul; see `kernels.add_lora`."""

    def __call__(
        self,
        y_TN: torch.Tensor,
        x_TK: torch.Tensor,
        a_RK: torch.Tensor,
        b_RN: torch.Tensor,
        columns: list[int],
        segments: Segments,
        group: int,
    ) -> None:
        """Add each segment's low-rank update to `y_TN`, in place."""


class PagedAttention(Protocol):
    """Attention over a paged cache; see `kernels.attention`."""

    def __call__(
        self,
        q_THD: torch.Tensor,
        k_SJD: torch.Tensor,
        v_SJE: torch.Tensor,
        batch: AttentionBatch,
        form: AttentionForm,
    ) -> torch.Tensor:
        """Return what each token of the batch sees in its request's context."""


class MakeLinear(Protocol):
    """A linear layer with frozen weights; see `kernels.linear`."""

    def __call__(self, weight_NK: torch.Tensor, bias_N: torch.Tensor | None) -> Linear:
        """Return the layer with these weights."""


@dataclass(frozen=True, slots=True)
class Backend:
    """The operations of one kind of device."""

    name: str
    make_linear: MakeLinear
    add_lora: AddLora
    paged_attention: PagedAttention


def choose_backend(name: str, device: torch.device) -> Backend:
    """Return the backend called `name`; `auto` means the fastest one for `device`.

    Raises:
        ValueError: The backend does not run on `device`.
    """
    if name == "auto":
        name = "cpu" if device.type == "cpu" else "torch"
    if name == "torch":
        return Backend("torch", make_linear, add_lora, paged_attention)
    if device.type != "cpu":
        raise ValueError(f"kernels 'cpu' do not run on device {device}")
    # Imported when asked for: compiling takes a second or two.
    from loramux_server.kernels.add_lora_cpu import AddLoraCpu
    from loramux_server.kernels.attention_cpu import PagedAttentionCpu
    from loramux_server.kernels.linear_cpu import make_linear_cpu

    return Backend("cpu", make_linear_cpu, AddLoraCpu(), PagedAttentionCpu())
