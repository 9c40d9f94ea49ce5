"""Biases and penalties, against what is written of them in the API, token by token."""

import math
from collections.abc import Sequence
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from loramux_server.engine.token_counts import SampledRow, adjustments_of, counts_of
from loramux_server.kernels.adjust import adjust
from loramux_server.wire.sampling import Sampling

EOS, VOCAB = 1, 90
TOKENS = st.lists(st.integers(0, VOCAB - 1), max_size=70)
"""More than there is room for at first."""
PENALTY = st.sampled_from([0.0, -1.5, 0.25, 2.0])
PARAMETERS = st.fixed_dictionaries(
    {
        "min_tokens": st.integers(0, 4),
        "repetition_penalty": st.sampled_from([1.0, 0.5, 1.3, 1e-45]),
        "presence_penalty": PENALTY,
        "frequency_penalty": PENALTY,
        "logit_bias": st.dictionaries(st.integers(0, VOCAB - 1), st.floats(-100, 100), max_size=3),
        "stop_token_ids": st.frozensets(st.integers(0, 2 * VOCAB), max_size=2),
        "ignore_eos": st.booleans(),
    }
)
Row = tuple[dict[str, Any], list[int], list[int], bool]
"""Parameters, prompt, output, and whether the output's last token is known to the device alone."""
ROWS: st.SearchStrategy[list[Row]] = st.lists(
    st.tuples(PARAMETERS, TOKENS, TOKENS, st.booleans()), min_size=1, max_size=4
)


def by_hand(
    logits: Sequence[float], sampling: Sampling, prompt: list[int], output: list[int]
) -> list[float]:
    changed = []
    ends = {*sampling.stop_token_ids, *(() if sampling.ignore_eos else (EOS,))}
    for token, logit in enumerate(logits):
        y = logit + sampling.logit_bias.get(token, 0.0)
        if len(output) < sampling.min_tokens and token in ends:
            y = -math.inf
        if token in prompt or token in output:
            penalty = sampling.repetition_penalty
            y = y / penalty if y > 0 else y * penalty
        count = output.count(token)
        if count:
            y -= sampling.presence_penalty + sampling.frequency_penalty * count
        changed.append(y)
    return changed


def sampling_of(parameters: dict[str, Any]) -> Sampling:
    return Sampling(max_tokens=100, seed=0, **parameters)


@settings(max_examples=150, derandomize=True)
@given(rows=ROWS, seed=st.integers(0, 100))
def test_logits_are_changed_as_by_hand(rows: list[Row], seed: int) -> None:
    logits = 4 * torch.randn(len(rows), VOCAB, generator=torch.Generator().manual_seed(seed))
    turns, inputs, wanted = [], [], []
    for (parameters, prompt, output, is_ahead), row in zip(rows, logits.tolist(), strict=True):
        sampling = sampling_of(parameters)
        counts = counts_of(sampling, prompt, [EOS], VOCAB)
        if counts:  # what is counted already is not counted again
            counts.at(len(output) // 2, output[: len(output) // 2])
        known = output[:-1] if is_ahead else output
        turns.append(SampledRow(counts, len(output), known))
        inputs.append(output[-1] if output else EOS)
        wanted.append(by_hand(row, sampling, prompt, output))
    adjustments = adjustments_of(turns)
    if adjustments is None:
        assert logits.tolist() == wanted
        return
    before = logits.clone()
    found = adjust(logits, torch.tensor(inputs), adjustments)
    torch.testing.assert_close(found, torch.tensor(wanted), rtol=1e-5, atol=1e-5)
    assert torch.equal(logits, before)


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    logits = torch.randn(3, VOCAB, generator=torch.Generator().manual_seed(0))
    rows: list[tuple[dict[str, Any], list[int]]] = [
        ({"presence_penalty": 1.0}, [5, 5, 7]),
        ({"repetition_penalty": 1.7, "logit_bias": {4: 1.0}}, list(range(60))),
        ({}, [5]),
    ]
    inputs = torch.tensor([output[-1] for _, output in rows])

    def found(numbers: list[int]) -> torch.Tensor:
        turns = [
            SampledRow(counts_of(sampling_of(parameters), [9, 8], [EOS]), len(output), output[:-1])
            for parameters, output in (rows[number] for number in numbers)
        ]
        adjustments = adjustments_of(turns)
        assert adjustments is not None
        return adjust(logits[numbers], inputs[numbers], adjustments)

    together = found([0, 1, 2])
    assert torch.equal(found([0]), together[:1])
    assert torch.equal(found([1]), together[1:2])
    assert torch.equal(logits[2], together[2])


def test_nothing_is_asked_of_the_host() -> None:
    """On tensors without values whatever reads one fails."""
    counts = counts_of(sampling_of({"repetition_penalty": 2.0}), [5, 6], [EOS])
    adjustments = adjustments_of([SampledRow(counts, 1, [])])
    assert adjustments is not None
    nowhere = torch.device("meta")
    logits = torch.zeros(1, VOCAB, device=nowhere)
    found = adjust(
        logits, torch.zeros(1, dtype=torch.int64, device=nowhere), adjustments.to(nowhere)
    )
    assert found.shape == logits.shape


@pytest.mark.parametrize("parameters", [{}, {"temperature": 0.5}, {"ignore_eos": True}])
def test_who_leaves_logits_alone_has_nothing_counted(parameters: dict[str, Any]) -> None:
    assert counts_of(sampling_of(parameters), [5], [EOS]) is None
