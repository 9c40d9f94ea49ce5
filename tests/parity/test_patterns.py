"""Adapters whose modules are named by regular expressions, as trainers write them, equal PEFT."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.adapters.test_patterns import UNSLOTH
from tests.parity.test_peft import Case, check
from tests.support.adapters import expected, pack_source, save_adapter, with_adapter
from tests.support.engine import Harness
from tests.support.image_prompts import Case as VisionCase
from tests.support.image_prompts import Prompt, photo, prompt_logprobs_of, show, vision_case
from tests.support.models import VOCAB, tiny_model

LLAMA_FACTORY = r"^(?!.*(?:visual|vision_tower)).*(?:q_proj|v_proj).*"
CONFIGS: list[dict[str, Any]] = [
    {"target_modules": UNSLOTH},
    {"target_modules": LLAMA_FACTORY},
    {
        "target_modules": r"^(language_model|model)(?!.*(lm_head|output|emb)).*_proj",
        "exclude_modules": r".*layers\.0\.mlp\..*",
        # PEFT saves the keys in this order, whatever theirs was.
        "rank_pattern": {r"^model\..*layers\.1\..*": 2, r"self_attn\.(q|k)_proj": 7},
        "alpha_pattern": {r"[qv]_proj": 3, "mlp.*": 21},
    },
]
IDS = ["unsloth", "llama-factory", "ms-swift"]


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> VisionCase:
    return vision_case("qwen2.5-vl", tmp_path_factory.mktemp("qwen"))


@pytest.mark.parametrize("config", CONFIGS, ids=IDS)
def test_what_reads_text_equals_peft(config: dict[str, Any], tmp_path: Path) -> None:
    model, prompt = tiny_model("llama"), [5, 6, 7, 8]
    folder = save_adapter(model, tmp_path / "a", seed=1, r=4, **config)
    source, changed = pack_source(folder, tmp_path / "a.pkg"), with_adapter(model, folder)
    case = Case(prompt, source, expected(changed, prompt, 5))
    harness = Harness(copy.deepcopy(model), kernels="cpu", rows=64, num_blocks=50)
    request_id = harness.submit(prompt, source, max_tokens=5, num_logprobs=VOCAB)
    harness.run()
    check(harness, request_id, case)
    assert (case.expected.logprobs - expected(model, prompt, 5).logprobs).abs().max() > 0.01


@pytest.mark.parametrize("config", CONFIGS, ids=IDS)
def test_vision_adapters_equal_peft(
    config: dict[str, Any], qwen: VisionCase, tmp_path: Path
) -> None:
    folder = save_adapter(copy.deepcopy(qwen.model), tmp_path / "a", seed=1, r=4, **config)
    source, changed = pack_source(folder, tmp_path / "a.pkg"), with_adapter(qwen.model, folder)
    prompt = Prompt.of([[5, 6, 7], qwen.processor.prepare(photo(1)), [8, 9, 10]])
    harness = qwen.harness()
    request_id = show(harness, prompt, source)
    harness.run()
    wanted = qwen.expected(changed, prompt)
    torch.testing.assert_close(prompt_logprobs_of(harness, request_id), wanted, rtol=0, atol=1e-4)
    assert (wanted - qwen.expected(qwen.model, prompt)).abs().max() > 0.01
