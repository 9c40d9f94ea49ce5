"""Drawing tokens: both forms against a definition by hand, and both against the distribution."""

import math
import struct
from collections import Counter
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import example, given, settings
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from loramux_server.engine.sampler import draws_of, likeliest, uniform
from loramux_server.kernels import draw as definition
from loramux_server.kernels.cpu.draw import draw_cpu
from loramux_server.kernels.draw import Draws, draw
from loramux_server.wire.sampling import Sampling

FORMS: dict[str, Callable[[torch.Tensor, torch.Tensor, Draws], torch.Tensor]] = {
    "definition": draw,
    "cpu": draw_cpu,
}
INF = float("inf")
TIES = st.sampled_from([-INF, -2.0, -1.0, -0.0, 0.0, 0.5, 1.0])
SPREAD = st.one_of(
    st.floats(-30, 30, width=32), st.floats(width=32, allow_nan=False).filter(lambda x: x < INF)
)
VALUES = st.sampled_from([TIES, SPREAD, TIES | SPREAD])
ROWS = VALUES.flatmap(lambda values: st.lists(values, min_size=1, max_size=50)).filter(
    lambda row: max(row) > -INF
)
SAMPLINGS = st.builds(
    Sampling,
    max_tokens=st.just(10),
    seed=st.integers(-(1 << 63), (1 << 63) - 1),
    temperature=st.sampled_from([0.0, 1e-45, 1e-5, 0.01, 0.7, 1.0, 1.9, 2.0, 100.0]),
    top_k=st.sampled_from([0, 0, 1, 2, 7, 49, 1000]),
    top_p=st.sampled_from([1.0, 1.0, 0.9, 0.5, 0.999999, 1e-30]),
    min_p=st.sampled_from([0.0, 0.0, 1e-30, 0.1, 0.5, 0.999999, 1.0]),
)


def by_hand(logits: list[float], asked: Sampling, position: int) -> int:
    """Return the token that is drawn, in plain words."""
    most = max(logits)
    if asked.is_greedy:
        return logits.index(most)
    tokens = list(range(len(logits)))
    if asked.top_k or asked.top_p < 1 or asked.min_p:
        tokens.sort(key=lambda token: (-logits[token], token))
    if asked.top_k:
        tokens = tokens[: asked.top_k]
    weights = [
        int(math.exp((logits[token] - most) / asked.temperature) * definition.UNITS)
        for token in tokens
    ]
    left: list[tuple[int, int]] = []
    before = 0
    for token, weight in zip(tokens, weights, strict=True):
        is_likely = not asked.min_p or logits[token] >= single(
            most + asked.temperature * math.log(asked.min_p)
        )
        is_needed = asked.top_p >= 1 or not left or before < asked.top_p * sum(weights)
        if is_likely and is_needed:
            left.append((token, weight))
        before += weight
    number = uniform(asked.seed, position) * sum(weight for _, weight in left)
    for token, weight in left:
        number -= weight
        if number < 0:
            return token
    raise AssertionError("nothing is left")


def single(number: float) -> float:
    """Return `number` as float32 has it."""
    return float(struct.unpack("f", struct.pack("f", number))[0])


def sampling(**how: Any) -> Sampling:
    return Sampling(max_tokens=1, **how)


def drawn(
    form: str, rows: list[list[float]], samplings: list[Sampling], position: int = 0
) -> list[int]:
    logits_RV = torch.tensor(rows)
    draws = draws_of([(asked, position) for asked in samplings])
    likeliest_R = likeliest(logits_RV)
    return (FORMS[form](logits_RV, likeliest_R, draws) if draws else likeliest_R).tolist()


@pytest.mark.parametrize("form", FORMS)
@given(row=ROWS, samplings=st.lists(SAMPLINGS, min_size=1, max_size=5), position=st.integers(0, 9))
@example(row=[3e38, -3e38, 0.0], samplings=[sampling(seed=5)], position=0)
@example(row=[1e30, 1e30, 0.0], samplings=[sampling(seed=5)], position=1)
@settings(max_examples=150)
def test_tokens_are_those_drawn_by_hand(
    form: str, row: list[float], samplings: list[Sampling], position: int
) -> None:
    """Whatever its neighbours ask for, each row is drawn what it would be alone."""
    rows = [row[shift:] + row[:shift] for shift in range(len(samplings))]
    wanted = [by_hand(*pair, position) for pair in zip(rows, samplings, strict=True)]
    assert drawn(form, rows, samplings, position) == wanted


def test_both_forms_draw_the_same_from_a_large_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(definition, "_MOST_LOGITS", 3 * 6_000)
    generator = torch.Generator().manual_seed(0)
    logits_RV = 3 * torch.randn(40, 6_000, generator=generator)
    logits_RV[::2] = logits_RV[::2].bfloat16().float()  # as a model gives them: many are equal
    ways: list[dict[str, Any]] = [
        {},
        {"top_p": 0.9},
        {"top_k": 50, "top_p": 0.95},
        {"min_p": 0.05},
        {"top_k": 5000},
    ]
    for way in (ways, ways[:1]):  # rows that are cut beside others, and none that is
        samplings = [
            sampling(seed=seed, temperature=0.8, **way[seed % len(way)]) for seed in range(40)
        ]
        draws = draws_of([(asked, 3) for asked in samplings])
        assert draws is not None
        assert draws.is_cut == (way is ways)
        likeliest_R = likeliest(logits_RV)
        tokens = draw(logits_RV, likeliest_R, draws).tolist()
        assert tokens == draw_cpu(logits_RV, likeliest_R, draws).tolist()
        assert len(set(tokens)) > 30


class OnMeta(TorchDispatchMode):
    """Demands that all tensors of all operations are on a device where nothing has a value."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, result)) if isinstance(leaf, torch.Tensor)]
        assert all(tensor.is_meta for tensor in tensors), func
        return result


@pytest.mark.parametrize("is_cut", [False, True])
def test_the_host_need_not_know_a_value(is_cut: bool) -> None:
    logits_RV = torch.empty(5, 100, device="meta")
    likeliest_R = torch.empty(5, dtype=torch.int64, device="meta")
    rows_R5 = torch.empty(5, 5, dtype=torch.float64, device="meta")
    with OnMeta():
        token_R = draw(logits_RV, likeliest_R, Draws(rows_R5, is_cut))
    assert (token_R.shape, token_R.dtype) == ((5,), torch.int64)


@pytest.mark.parametrize("form", FORMS)
def test_of_equal_tokens_the_lower_ones_are_left(form: str) -> None:
    row = [0.0, 1.0, 2.0, 1.0, 1.0, 1.0]
    found = {}
    for name, value in {"top_k": 3, "top_p": 0.5, "min_p": 0.3}.items():
        samplings = [sampling(seed=seed, **{name: value}) for seed in range(200)]
        found[name] = set(drawn(form, [row] * 200, samplings))
    assert found == {"top_k": {1, 2, 3}, "top_p": {1, 2}, "min_p": {1, 2, 3, 4, 5}}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("way", "left"),
    [({}, range(8)), ({"top_k": 5}, range(3, 8)), ({"top_p": 0.9}, range(3, 8)),
     ({"min_p": 0.1}, range(3, 8)), ({"temperature": 2.0, "top_k": 7, "top_p": 0.95}, range(2, 8))],
)  # fmt: skip
def test_how_often_tokens_come_is_how_likely_they_are(
    form: str, way: dict[str, Any], left: range
) -> None:
    row = [-3.0, -1.0, 0.0, 0.5, 1.0, 1.5, 2.0, 2.5]
    count = 4000
    samplings = [sampling(seed=seed, **way) for seed in range(count)]
    counts = Counter(drawn(form, [row] * count, samplings))
    assert counts.keys() <= set(left)
    scaled = torch.tensor([row[token] for token in left]) / way.get("temperature", 1.0)
    wanted = (count * torch.softmax(scaled, 0)).tolist()
    chi_square = sum(
        (counts[token] - expected) ** 2 / expected
        for token, expected in zip(left, wanted, strict=True)
    )
    assert chi_square < 30  # of at most 7 degrees of freedom: 1 of 10 000 are above


@pytest.mark.parametrize("form", FORMS)
def test_what_is_not_finite_is_taken_and_harms_no_other_row(form: str) -> None:
    nan = float("nan")
    row = [0.0, 1.0, 2.0, 3.0]
    bad = [[nan, 5.0, 1.0, 2.0], [INF, 0.0, 1.0, 2.0], [-INF] * 4, [nan] * 4, [INF, -INF, INF, nan]]
    for way in ({}, {"top_p": 0.9}, {"top_k": 2, "min_p": 0.1}):
        samplings = [sampling(seed=seed, **way) for seed in range(7)]
        tokens = drawn(form, [row, *bad, row], samplings)
        assert tokens[0] == by_hand(row, samplings[0], 0)
        assert tokens[-1] == by_hand(row, samplings[-1], 0)
        # So that looking at its logit is enough to know of all others.
        assert tokens[1:-1] == likeliest(torch.tensor(bad)).tolist()
