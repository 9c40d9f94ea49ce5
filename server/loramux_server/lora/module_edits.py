"""Edits of modules that have no rows in the slab: embeddings, output layer, norms and others.

Legend: T tokens, V vocabulary size, E tokens with trained rows (experts in `RouterEdit`), R rank,
K input width, N output width.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from loramux_server.lora.edits import LayerEdit


@dataclass(frozen=True, slots=True)
class LowRank:
    """A low-rank change stored outside the slab; the scale is folded into B."""

    a_RK: torch.Tensor
    b_NR: torch.Tensor


@dataclass(frozen=True, slots=True)
class TokenRows:
    """Replacement rows of some tokens in an embedding matrix, tokens in ascending order."""

    token_E: torch.Tensor
    row_EK: torch.Tensor
    end: int
    """Greatest token plus one, kept on the host to avoid a device synchronization."""


@dataclass(frozen=True, slots=True)
class ParameterEdit:
    """Runs the module with the adapter's parameters instead of its own, from storage format."""

    parameters: Mapping[str, torch.Tensor]

    def __call__(self, module: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return the output of `module` for `x` with these parameters."""
        del y
        return computed(module, self.parameters, x)


@dataclass(frozen=True, slots=True)
class RouterEdit:
    """The edit of a router of experts: a replacement weight, then a low-rank change.

    None: not applied.
    """

    weight_EK: torch.Tensor | None = None
    low_rank: LowRank | None = None

    def weight(self, own_EK: torch.Tensor) -> torch.Tensor:
        """Return the weight to use instead of `own_EK`, in its dtype."""
        weight_EK = own_EK if self.weight_EK is None else self.weight_EK.to(own_EK.dtype)
        if self.low_rank is None:
            return weight_EK
        changed_EK = torch.addmm(weight_EK.float(), self.low_rank.b_NR, self.low_rank.a_RK)
        return changed_EK.to(own_EK.dtype)


@dataclass(frozen=True, slots=True)
class EmbeddingEdit:
    """The edit of embeddings: a replacement weight, rows of some tokens, then LoRA and a factor.

    None: not applied.
    """

    weight_VK: torch.Tensor | None = None
    rows: TokenRows | None = None
    a_VR: torch.Tensor | None = None
    b_KR: torch.Tensor | None = None
    """The scale of the change is folded in."""
    output_K: torch.Tensor | None = None

    def __call__(self, module: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return the embeddings of the tokens `x`, [T], to replace `y`, [T, K]."""
        if self.weight_VK is not None:
            y = _embedded(module, self.weight_VK, x)
        # Some models scale embeddings in the module itself.
        scale = getattr(module, "embed_scale", 1.0)
        if self.rows is not None:
            index_T = torch.searchsorted(self.rows.token_E, x).clamp(max=len(self.rows.token_E) - 1)
            is_own_T = self.rows.token_E[index_T] == x
            y = torch.where(is_own_T[:, None], self.rows.row_EK[index_T].to(y.dtype) * scale, y)
        if self.a_VR is not None and self.b_KR is not None:
            y = y + self.a_VR[x] @ self.b_KR.T * scale
        return y if self.output_K is None else y * self.output_K


@dataclass(frozen=True, slots=True)
class OutputEdit:
    """The edit of the output layer (LM head), whose input is only the rows that need logits."""

    layer: LayerEdit
    low_rank: LowRank | None = None
    rows: TokenRows | None = None

    def __call__(self, module: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return the logits of `x`, [T, K], to replace `y`, [T, N]."""
        layer = self.layer
        if layer.input_K is not None:
            x = (x * layer.input_K).to(x.dtype)
            y = module.forward(x)
        if layer.weight is not None:
            y = layer.weight(x)
        if self.low_rank is not None:
            y = y + x.float() @ self.low_rank.a_RK.T @ self.low_rank.b_NR.T
        y = layer.affine.of(y)
        if self.rows is not None:
            if (num_more := self.rows.end - y.shape[1]) > 0:
                y = nn.functional.pad(y, (0, num_more))
            y[:, self.rows.token_E] = nn.functional.linear(x, self.rows.row_EK).to(y.dtype)
        return y


def computed(
    module: nn.Module, parameters: Mapping[str, torch.Tensor], x: torch.Tensor
) -> torch.Tensor:
    """Return the output of `module` for one sequence `x` with `parameters` instead of its own.

    Hooks of the module are not called.
    """
    with replaced(module, parameters):
        y: torch.Tensor = module.forward(x[None])
    return y[0]


@contextmanager
def replaced(module: nn.Module, parameters: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Replace parameters of `module` by `parameters`, cast to the same dtype, for the block."""
    own = {name: getattr(module, name) for name in parameters}
    try:
        for name, value in parameters.items():
            held = value.to(own[name].dtype)
            setattr(module, name, nn.Parameter(held, requires_grad=False))
        yield
    finally:
        for name, value in own.items():
            setattr(module, name, value)


def _embedded(module: nn.Module, weight_VK: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Return the output of the embedding `module` for tokens `x` with `weight_VK`, as stored.

    Only the rows of these tokens are converted to the module's dtype; they serve as its weight.
    """
    assert isinstance(module, nn.Embedding)
    padding = module.padding_idx
    try:
        module.padding_idx = None  # only used in training, and could exceed the number of rows
        return computed(module, {"weight": weight_VK[x]}, torch.arange(len(x), device=x.device))
    finally:
        module.padding_idx = padding
