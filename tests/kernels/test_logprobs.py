"""Log-probabilities that are told beside tokens."""

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from loramux_server.kernels.cpu.logprobs import logprobs_cpu
from loramux_server.kernels.logprobs import logprobs

LOGITS = st.lists(
    st.sampled_from([0.0, -0.0, 1.0, 1.0, -2.5, 3.0, -math.inf, 1e-40, -1e-40]),
    min_size=30, max_size=30,
)  # fmt: skip


FORMS = {"definition": logprobs, "cpu": logprobs_cpu}


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=80, derandomize=True)
@given(rows=st.lists(LOGITS, min_size=1, max_size=3), count=st.integers(0, 30))
def test_the_likeliest_come_first_and_of_equal_ones_the_lower(
    form: str, rows: list[list[float]], count: int
) -> None:
    rows = [[*row[:-1], 0.5] for row in rows]  # none of them is all -inf
    tokens = torch.tensor([row.index(0.5) for row in rows])
    found = FORMS[form](torch.tensor(rows), tokens, count)
    for row, reported, chosen in zip(rows, found.tolist(), tokens.tolist(), strict=True):
        total = math.log(sum(math.exp(logit) for logit in row))
        wanted = sorted(range(30), key=lambda token: (-row[token], token))[:count]
        assert [int(token) for token in reported[1 + count :]] == wanted
        assert reported[0] == pytest.approx(row[chosen] - total, abs=1e-5)
        assert reported[1 : 1 + count] == pytest.approx([row[t] - total for t in wanted], abs=1e-5)


def test_nothing_is_asked_of_the_host() -> None:
    nowhere = torch.device("meta")  # whatever reads a value fails there
    logits, tokens = torch.zeros(2, 50, device=nowhere), torch.zeros(2, dtype=torch.int64)
    assert logprobs(logits, tokens.to(nowhere), 20).shape == (2, 41)
