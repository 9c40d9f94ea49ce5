"""Drawing tokens without a sort draws those that the definition draws."""

from typing import Any

import pytest
import torch

from loramux_server.engine.sampler import draws_of, likeliest
from loramux_server.kernels.draw import Draws, draw
from loramux_server.kernels.gpu.draw import Blocks, draw_triton
from loramux_server.wire.sampling import Sampling

INF, NAN = float("inf"), float("nan")
WAYS: list[dict[str, Any]] = [
    {"temperature": 0.7},
    {"temperature": 0.0},
    {"top_p": 0.9},
    {"top_p": 1e-30},
    {"top_k": 1},
    {"top_k": 7, "temperature": 1.9},
    {"top_k": 1000, "top_p": 0.5},
    {"top_k": 9, "top_p": 0.8, "min_p": 0.05},
    {"min_p": 0.5},
    {"min_p": 1.0, "temperature": 1e-5},
]
"""With 50 tokens, some leave all and some only one."""
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy, of what is not finite


def both(
    logits_RV: torch.Tensor, ways: list[dict[str, Any]], device: torch.device, seed: int, v: int
) -> tuple[list[int], list[int]]:
    """Return the tokens of the definition and of the kernels."""
    samplings = [Sampling(max_tokens=1, seed=seed + i, **way) for i, way in enumerate(ways)]
    found = draws_of([(asked, 0) for asked in samplings])
    assert found is not None
    draws = Draws(found.rows_R5.to(device), found.is_cut)
    logits_RV = logits_RV.to(device)
    given = logits_RV, likeliest(logits_RV), draws
    return draw(*given).tolist(), draw_triton(*given, blocks=Blocks(v)).tolist()


def test_the_tokens_are_those_of_the_definition(device: torch.device) -> None:
    generator = torch.Generator().manual_seed(0)
    spread_RV = 4 * torch.randn(len(WAYS), 50, generator=generator)
    kinds = [spread_RV, spread_RV.round(), (spread_RV / 8).round()]  # of the last many are -0.0
    for seed in range(2):
        logits_RV = torch.stack([kinds[(i + seed) % 3][i] for i in range(len(WAYS))])
        logits_RV[:, 5] = -INF
        wanted, tokens = both(logits_RV, WAYS, device, seed, v=32)
        assert tokens == wanted
        assert len(set(tokens)) > 3


def test_rows_that_leave_nothing_out_need_no_search(device: torch.device) -> None:
    logits_RV = torch.randn(8, 50, generator=torch.Generator().manual_seed(1))
    wanted, tokens = both(logits_RV, [{"temperature": 2.0}] * 8, device, 0, v=16)
    assert tokens == wanted
    assert len(set(tokens)) > 3


def test_what_is_not_finite_is_taken_and_harms_no_other_row(device: torch.device) -> None:
    row = [0.0, 1.0, 2.0, 3.0]
    bad = [[NAN, 5.0, 1.0, 2.0], [INF, 0.0, 1.0, 2.0], [-INF] * 4, [INF, -INF, INF, NAN]]
    ways = [{"top_p": 0.9}, {"top_k": 2, "min_p": 0.1}, {}] * 2
    wanted, tokens = both(torch.tensor([row, *bad, row]), ways, device, 3, v=16)
    assert tokens == wanted
