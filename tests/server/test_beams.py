"""The search itself, without an engine: what transformers finds in tables of made-up numbers."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GenerationConfig, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from loramux_server.services.generation.beams import BeamOptions, Beams, Found, Likely

VOCAB = 13
MAX_TOKENS = 7
PROMPT = [0]
FORCED = 3


class TableConfig(PreTrainedConfig):  # type: ignore[misc]
    """What transformers wants to know of a model."""

    def __init__(self, **fields: Any) -> None:
        super().__init__(**{"vocab_size": VOCAB, "num_hidden_layers": 1, **fields})


class Table(PreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """A model that looks up its logits by place and by the last two tokens."""

    config_class = TableConfig

    def __init__(self, seed: int) -> None:
        super().__init__(TableConfig())
        self.nothing = torch.nn.Parameter(torch.zeros(1))
        made = torch.Generator().manual_seed(seed)
        self.numbers = 2 * torch.randn(MAX_TOKENS + 2, VOCAB, VOCAB, VOCAB, generator=made)

    def forward(self, input_ids: torch.Tensor, **_: Any) -> CausalLMOutput:
        rows = [self.row(row) for row in input_ids.tolist()]
        return CausalLMOutput(logits=torch.stack(rows)[:, None])

    def row(self, tokens: list[int]) -> torch.Tensor:
        """Return the logits of what follows `tokens`."""
        return self.numbers[len(tokens), tokens[-2] if len(tokens) > 1 else 0, tokens[-1]]

    def likely(self, tokens: list[int], count: int) -> Likely:
        """Return the likeliest tokens after `tokens`."""
        best = self.row(tokens).log_softmax(-1).topk(count)
        return list(zip(best.indices.tolist(), best.values.tolist(), strict=True))


def found_by_transformers(table: Table, options: BeamOptions) -> list[tuple[list[int], float]]:
    ids, num_forced = torch.tensor([PROMPT]), options.num_forced
    config = GenerationConfig(
        do_sample=False, num_beams=options.num_beams, num_return_sequences=options.num_beams,
        max_new_tokens=options.max_tokens + num_forced,
        min_new_tokens=options.min_tokens + num_forced or None,
        forced_bos_token_id=FORCED if num_forced else None,
        suppress_tokens=sorted(options.forbidden) or None,
        eos_token_id=sorted(options.ends) or None, pad_token_id=0, use_cache=False,
        length_penalty=options.length_penalty, early_stopping=options.early_stopping,
        output_scores=True, return_dict_in_generate=True,
    )  # fmt: skip
    with torch.inference_mode():
        found = table.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
    result = []
    for row, score in zip(found.sequences.tolist(), found.sequences_scores.tolist(), strict=True):
        made = row[len(PROMPT) + num_forced :]
        ends = (i for i, token in enumerate(made, 1) if token in options.ends)
        result.append((made[: next(ends, len(made))], score))
    return result


def found_by_us(table: Table, options: BeamOptions) -> list[Found]:
    beams, prompt = Beams(options), [*PROMPT, *[FORCED] * options.num_forced]
    while beams.running:
        assert len(beams.running) <= options.num_beams
        assert {len(beam.tokens) for beam in beams.running} == {beams.length}
        beams.advance(
            [table.likely([*prompt, *beam.tokens], options.num_likely) for beam in beams.running]
        )
    return beams.found


@settings(max_examples=60)
@given(
    seed=st.integers(0, 1 << 20),
    num_beams=st.integers(2, 8),
    max_tokens=st.integers(1, MAX_TOKENS),
    ends=st.frozensets(st.integers(1, VOCAB - 1).filter(lambda t: t != FORCED), max_size=4),
    forbidden=st.frozensets(st.sampled_from([5, 6, VOCAB - 1]), max_size=1),
    num_forced=st.integers(0, 1),
    min_tokens=st.integers(0, 3),
    length_penalty=st.floats(-2, 3),
    early_stopping=st.booleans(),
)
def test_finds_what_transformers_finds(
    seed: int, max_tokens: int, min_tokens: int, **given: Any
) -> None:
    table = Table(seed)
    options = BeamOptions(max_tokens=max_tokens, min_tokens=min(min_tokens, max_tokens), **given)
    wanted, found = found_by_transformers(table, options), found_by_us(table, options)
    assert [list(each.tokens) for each in found] == [tokens for tokens, _ in wanted]
    assert [each.score for each in found] == pytest.approx([score for _, score in wanted], rel=1e-4)
    for each in found:
        assert each.is_stopped == (each.tokens[-1] in options.ends)
        assert len(each.tokens) > options.min_tokens or not each.is_stopped
        assert not options.forbidden & {*each.tokens}


def test_what_cannot_come_is_no_beam() -> None:
    beams = Beams(BeamOptions(num_beams=2, max_tokens=3))
    beams.advance([[(5, -0.5), (6, -1.0), (7, float("-inf"))]])
    beams.advance([[(5, -0.1)], [(6, float("-inf"))]])
    assert [beam.tokens for beam in beams.running] == [(5, 5)]
    beams.advance([[(8, -0.2)]])
    (found,) = beams.found
    assert (found.tokens, found.is_stopped, beams.running) == ((5, 5, 8), False, [])
    assert found.score == pytest.approx(-0.8 / 3)
