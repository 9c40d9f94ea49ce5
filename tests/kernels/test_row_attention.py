"""Attention of one token of each request: the compiled loop is what its definition says."""

from dataclasses import dataclass

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from loramux_server.kernels.cpu.row_attention import RowAttentionCpu
from loramux_server.kernels.row_attention import Context, row_attention

LENGTHS = (1, 7, 64, 3, 130)


@dataclass(frozen=True)
class Case:
    heads: int = 4
    key_heads: int = 4
    key_width: int = 64
    value_width: int = 64
    bias: str = "none"
    """none, heads, alike, turned (tokens of a head do not lie side by side) or some."""
    turned: bool = False
    """Whether heads of a token lie side by side."""
    dtype: torch.dtype = torch.float32


CASES = [
    Case(),
    Case(bias="heads"),
    Case(bias="alike", turned=True),
    Case(bias="turned"),
    Case(bias="some", heads=12, key_heads=3, turned=True),
    Case(heads=14, key_heads=1, key_width=32, value_width=96, bias="heads"),
    Case(key_width=16, value_width=16),
    Case(key_width=16, value_width=48),
    Case(key_width=6, value_width=10, bias="heads"),
    Case(bias="heads", dtype=torch.float64),
]


def given(case: Case, requests: int) -> tuple[torch.Tensor, list[Context]]:
    generator = torch.Generator().manual_seed(0)

    def random(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator, dtype=case.dtype)

    def halves(length: int, width: int) -> torch.Tensor:
        if case.turned:
            return random(length, case.key_heads, width).transpose(0, 1)
        return random(case.key_heads, length, width)

    def bias(number: int, length: int) -> torch.Tensor | None:
        if case.bias == "none" or (case.bias == "some" and number % 2):
            return None
        if case.bias == "turned":
            return random(length, case.heads).T
        return random(1 if case.bias == "alike" else case.heads, length)

    # As a layer makes them: the heads of a token lie side by side.
    q_BHD = random(requests, case.heads * case.key_width).view(requests, case.heads, -1)
    return q_BHD, [
        Context(halves(length, case.key_width), halves(length, case.value_width), bias(i, length))
        for i, length in enumerate(LENGTHS[:requests])
    ]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_definition_is_the_attention_of_torch(case: Case) -> None:
    q_BHD, contexts = given(case, len(LENGTHS))
    out_BHE = row_attention(q_BHD, contexts, scale=0.3)
    for q_HD, (k_JLD, v_JLE, bias_HL), out_HE in zip(q_BHD, contexts, out_BHE, strict=True):
        wanted = scaled_dot_product_attention(
            q_HD[None, :, None], k_JLD[None], v_JLE[None],
            attn_mask=None if bias_HL is None else bias_HL[None, :, None], scale=0.3,
            enable_gqa=True,
        )  # fmt: skip
        torch.testing.assert_close(out_HE, wanted[0, :, 0])


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_loop_is_the_definition(case: Case, threads: int) -> None:
    attend = RowAttentionCpu()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for requests in (1, len(LENGTHS), 2):
            q_BHD, contexts = given(case, requests)
            out_BHE = attend(q_BHD, contexts, 0.3)
            torch.testing.assert_close(out_BHE, row_attention(q_BHD, contexts, 0.3))
    finally:
        torch.set_num_threads(before)


def test_what_is_not_finite_stays_so() -> None:
    q_BHD, contexts = given(Case(), 2)
    contexts[1].k_JLD[2, 4, 9] = torch.nan
    out_BHE = RowAttentionCpu()(q_BHD, contexts, 0.3)
    assert out_BHE[0].isfinite().all()
    assert out_BHE[1, 2].isnan().all()
    assert out_BHE[1, :2].isfinite().all()
