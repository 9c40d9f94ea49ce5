"""Experts with adapters' changes, whatever form the model's own have."""

import copy
from inspect import signature
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers.integrations.moe import use_experts_implementation

from loramux_adapters.experts import ExpertsShape
from loramux_server.kernels.backend import choose_backend
from loramux_server.kernels.experts import ExpertWeights, Pairs, multiply_experts
from loramux_server.lora.edits import Edits
from loramux_server.lora.experts_edit import ExpertPiece, ExpertsEdit, rows_of
from loramux_server.lora.segments import Residence, Segments
from loramux_server.models.experts import ServedExperts, find_experts
from loramux_server.models.step import CPU, Step
from loramux_server.wire.weight_format import WeightFormat

E, K, M, TOKENS = 5, 32, 48, 23
FORMS: dict[str, dict[str, bool]] = {
    "gated": {},
    "transposed, biased, in turns": {
        "is_transposed": True, "has_bias": True, "is_concatenated": False,
    },
    "without a gate": {"has_gate": False, "has_bias": True},
}  # fmt: skip
if "has_post_expert_norm" in signature(use_experts_implementation).parameters:
    FORMS["with a norm"] = {"has_post_expert_norm": True}


class Config:
    _experts_implementation = "grouped_mm"


def experts(**form: bool) -> Any:
    """Return experts of random weights that are described as `form`."""

    class Experts(nn.Module):
        def __init__(self, config: Config) -> None:
            super().__init__()
            del config
            self.num_experts = E
            num_first = M if form.get("has_gate") is False else 2 * M
            name = "up_proj" if form.get("has_gate") is False else "gate_up_proj"
            for parameter, width_in, width_out in ((name, K, num_first), ("down_proj", M, K)):
                sizes = (
                    (width_in, width_out) if form.get("is_transposed") else (width_out, width_in)
                )
                self.register_parameter(parameter, nn.Parameter(torch.randn(E, *sizes) * 0.2))
                if form.get("has_bias"):
                    bias = nn.Parameter(torch.randn(E, width_out))
                    self.register_parameter(f"{parameter}_bias", bias)
            self.act_fn = nn.SiLU()
            if form.get("has_post_expert_norm"):
                self.post_expert_norm = nn.RMSNorm(K)

        def forward(
            self, x_TK: torch.Tensor, index_TX: torch.Tensor, weight_TX: torch.Tensor
        ) -> torch.Tensor:
            raise NotImplementedError

        if form.get("is_concatenated") is False:

            def _apply_gate(self, y: torch.Tensor) -> torch.Tensor:
                return torch.tanh(y[..., ::2]) * (y[..., 1::2] + 1)

    torch.manual_seed(0)
    made = use_experts_implementation(Experts, **form)(Config())
    return made.requires_grad_(False)


class Model(nn.Module):
    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.experts = part


def merged(own: Any, **changes: torch.Tensor) -> Any:
    """Return a copy of `own` with `changes`, [E, N, K], added to its weights."""
    other = copy.deepcopy(own)
    for name, delta_ENK in changes.items():
        weight = getattr(other, name)
        weight += delta_ENK.transpose(1, 2) if own.is_transposed else delta_ENK
    return other


def residence(edit: ExpertsEdit) -> Residence:
    none = np.zeros((1, 1), np.int32)
    return Residence(
        0, 8, WeightFormat.FLOAT32, none, none.astype(np.float32),
        Edits(experts={"experts": edit}),
    )  # fmt: skip


def piece(rank: int, width_in: int, width_out: int, scale: float, **more: int) -> ExpertPiece:
    count = 1 if "number" in more else E
    return ExpertPiece(
        torch.randn(count, rank, width_in) * 0.3, torch.randn(count, rank, width_out) * 0.3,
        scale, **more,
    )  # fmt: skip


def delta(pieces: list[ExpertPiece], width_out: int) -> torch.Tensor:
    """Return what `pieces` add to the weights of all experts, [E, N, K]."""
    sum_ENK = torch.zeros(E, width_out, pieces[0].a_ERK.shape[2])
    for each in pieces:
        width = each.b_ERN.shape[2]
        found = each.scale * torch.einsum("ern,erk->enk", each.b_ERN, each.a_ERK)
        at = slice(None) if each.number is None else slice(each.number, each.number + 1)
        sum_ENK[at, each.begin : each.begin + width] += found
    return sum_ENK


@pytest.mark.parametrize("kernels", ["cpu", "torch"])
@pytest.mark.parametrize("form", FORMS)
def test_tokens_of_several_adapters_get_what_their_own_models_make(form: str, kernels: str) -> None:
    own = experts(**FORMS[form])
    name = "gate_up_proj" if own.has_gate else "up_proj"
    num_first = 2 * M if own.has_gate else M
    step, model = Step(backend=choose_backend(kernels, CPU)), Model(own)
    found = find_experts(model, step)
    assert found["experts"].shape == ExpertsShape(E, K, M, own.has_gate, own.is_concatenated)
    assert isinstance(model.experts, ServedExperts)
    alone = [piece(2, K, M, 2.0, number=1), piece(4, K, M, 2.0, number=4)]
    if own.has_gate:
        alone.append(piece(1, K, M, 0.25, begin=M, number=1))
    firsts = [[piece(3, K, num_first, 0.5)], alone, []]
    lasts = [[piece(1, M, K, 1.5)], [], [piece(6, M, K, 0.7)]]
    edits, models = [], []
    for first, last in zip(firsts, lasts, strict=True):
        rows = [
            rows_of(pieces, E, features, WeightFormat.FLOAT32, torch.float32) if pieces else None
            for pieces, features in ((first, (K, num_first)), (last, (M, K)))
        ]
        edits.append(ExpertsEdit(*rows))
        changes = {name: delta(first, num_first)} if first else {}
        changes |= {"down_proj": delta(last, K)} if last else {}
        models.append(merged(own, **changes))
    starts, ends = [2, 5, 6], [5, 6, 17]
    step.segments = Segments.build(starts, ends, [residence(edit) for edit in edits])
    x_TK = torch.randn(TOKENS, K)
    index_TX = torch.stack([torch.randperm(E)[:2] for _ in range(TOKENS)])
    index_TX[5] = torch.tensor([4, 1])
    weight_TX = torch.rand(TOKENS, 2)
    wanted = own(x_TK, index_TX, weight_TX)
    model.experts.attach(step.backend)
    made = model.experts(x_TK, weight_TX=weight_TX, index_TX=index_TX)  # in any order
    for start, end, other in zip(starts, ends, models, strict=True):
        changed = other(x_TK[start:end], index_TX[start:end], weight_TX[start:end])
        assert (changed - wanted[start:end]).abs().max() > 0.01
        wanted[start:end] = changed
    torch.testing.assert_close(made, wanted, rtol=1e-4, atol=1e-4)


def test_experts_that_compute_something_else_stay_as_they_are() -> None:
    own = experts()
    own.__class__.forward = lambda self, x_TK, *_: 2 * x_TK
    model = Model(own)
    assert find_experts(model, Step()) == {}
    assert model.experts is own


def test_experts_need_not_say_that_they_have_no_norm() -> None:
    own = experts()
    vars(own).pop("has_post_expert_norm", None)  # as transformers 5.17 describes them
    own.__class__.forward = lambda self, *given: plain(self, *given)
    model = Model(own)
    assert find_experts(model, Step()) == {"experts": model.experts}


def plain(
    own: Any, x_TK: torch.Tensor, index_TX: torch.Tensor, weight_TX: torch.Tensor
) -> torch.Tensor:
    """Return what gated experts make, one token after the other."""
    made = torch.zeros_like(x_TK)
    for token, (indices, weights) in enumerate(zip(index_TX, weight_TX, strict=True)):
        for expert, weight in zip(indices, weights, strict=True):
            gate_up = own.gate_up_proj[expert] @ x_TK[token]
            made[token] += weight * (own.down_proj[expert] @ own._apply_gate(gate_up))
    return made


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_changes_of_16_bits_rest_in_them(dtype: torch.dtype) -> None:
    form = WeightFormat.BFLOAT16 if dtype is torch.bfloat16 else WeightFormat.FLOAT16
    one = piece(3, K, M, 0.5)
    rows = rows_of([one], E, (K, M), form, dtype)
    assert (rows.rank, rows.size) == (3, 2)  # two rows of 16 bits in one of float32
    assert rows.a_RK.nbytes == E * 4 * K * 2 and rows.b_RN.nbytes == E * 4 * M * 2
    held_ERK = rows.a_RK.view(-1).view(dtype).view(E, 4, K)
    assert torch.equal(held_ERK[:, :3], one.a_ERK.to(dtype))
    assert not held_ERK[:, 3].any()
    x_PK = torch.randn(2, K)
    weights = ExpertWeights(torch.zeros(E, M, K), None)
    y_PN = multiply_experts(x_PK, weights, Pairs(torch.tensor([1, 9]), 2), [rows])
    for at, expert in enumerate((0, 4)):
        a_RK, b_RN = (half[expert].to(dtype).float() for half in (one.a_ERK, one.b_ERN))
        torch.testing.assert_close(y_PN[at], 0.5 * (x_PK[at] @ a_RK.T) @ b_RN)
