"""Layers of a decoder behind an encoder that take several requests together, or do not."""

from pathlib import Path

import pytest
from transformers import T5GemmaConfig

from loramux_server.models.encoders.joint_layers import JointLayer
from loramux_server.models.loading import load_base_model
from tests.support.encoder_models import SEQ2SEQ, VOCAB, save_encoder_base
from tests.support.engine import Harness

_PART = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 16,
    "max_position_embeddings": 48,
}  # fmt: skip


def test_layers_that_use_positions_outside_of_attention_take_requests_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    turning = T5GemmaConfig(
        encoder=dict(_PART), decoder=_PART | {"cross_attention_hidden_size": 32}, vocab_size=VOCAB
    )
    monkeypatch.setitem(SEQ2SEQ, "t5gemma", turning)
    base = load_base_model(str(save_encoder_base("t5gemma", tmp_path)))
    assert not any(isinstance(part, JointLayer) for part in base.module.modules())
    # Requests at different positions get what each has alone.
    harness = Harness(base, kernels="cpu", prefix_cache=False)
    begins = [[0], [0, 9, 30, 7, 21, 8, 50]]
    prompts = [[17, 40, 8, 99, *begun] for begun in begins]

    def logprobs(*asked: list[int]) -> list[list[float]]:
        ids = [harness.submit(each, num_source=4, max_tokens=4, num_logprobs=1) for each in asked]
        harness.run()
        found = [[token.logprobs for token in harness.tokens[request_id]] for request_id in ids]
        return [[each.chosen for each in reported if each] for reported in found]

    together = logprobs(*prompts)
    assert together == [pytest.approx(logprobs(prompt)[0], abs=1e-5) for prompt in prompts]


def test_layers_of_bart_take_requests_together(tmp_path: Path) -> None:
    base = load_base_model(str(save_encoder_base("bart", tmp_path)))
    assert sum(isinstance(part, JointLayer) for part in base.module.modules()) == 1
