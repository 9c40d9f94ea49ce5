"""Methods that are folded when they are packed, in one batch, each equal to PEFT with it alone."""

import copy
import random
from pathlib import Path

import pytest
import torch
from peft import (
    DeftConfig,
    GraloraConfig,
    HRAConfig,
    OFTConfig,
    PeftConfig,
    RoadConfig,
    VBLoRAConfig,
)

from loramux_adapters.base import read_base
from tests.parity.table import folded
from tests.parity.test_peft import Case, check, target_modules
from tests.support.adapters import expected, pack_source, save_tuned
from tests.support.engine import Harness
from tests.support.models import VOCAB, tiny_model

TOLERANCE = 1e-4


def more_configs(names: list[str]) -> dict[str, PeftConfig]:
    """Return configs of other forms of the methods in `folded`."""
    common = {"task_type": "CAUSAL_LM", "target_modules": names}
    return {
        "vblora, only topk": VBLoRAConfig(
            **common, r=2, num_vectors=300, vector_length=16, save_only_topk_weights=True
        ),
        "gralora, without one for the whole": GraloraConfig(**common, r=8, gralora_k=4),
        "hra, at right angles": HRAConfig(**common, r=4, apply_GS=True),
        "deft, orthonormal": DeftConfig(**common, r=3, decomposition_method="qr", alpha=4),
        "para": DeftConfig(**common, r=2, para=True),
        "oft, exact": OFTConfig(
            **common, r=0, oft_block_size=8, use_cayley_neumann=False, block_share=True
        ),
        "oft, few terms": OFTConfig(**common, r=4, oft_block_size=0, num_cayley_neumann_terms=2),
        "road, one angle": RoadConfig(**common, variant="road_1", group_size=8),
        "road, four": RoadConfig(**common, variant="road_4", group_size=8),
    }


# The second has biases, which some of them change as well.
@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_every_method_in_one_batch_equals_peft_alone(architecture: str, tmp_path: Path) -> None:
    model = tiny_model(architecture)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".bias"):
                parameter.normal_(std=0.2)
    model.save_pretrained(tmp_path / "base")
    base = read_base(tmp_path / "base")
    rng = random.Random(0)
    names = target_modules(model)[0]
    cases = []
    configs = {**folded.configs(names, "CAUSAL_LM"), **more_configs(names)}
    for seed, config in enumerate(configs.values()):
        wrapped = save_tuned(model, config, tmp_path / f"{seed}", seed=seed)
        source = pack_source(tmp_path / f"{seed}", tmp_path / f"{seed}.pkg", base=base)
        prompt = [rng.randrange(3, VOCAB) for _ in range(rng.randint(2, 12))]
        cases.append(Case(prompt, source, expected(wrapped, prompt, 3)))
        plain = expected(model, prompt, 1).logprobs[0]
        assert (cases[-1].expected.logprobs[0] - plain).abs().max() > 10 * TOLERANCE
    harness = Harness(
        copy.deepcopy(model), kernels="cpu", rows=4096, num_blocks=400, max_batch_tokens=1024,
        max_running=64,
    )  # fmt: skip
    for case in cases:  # so that all adapters are there
        harness.submit(case.prompt, case.source, max_tokens=1)
    harness.run()
    numbers = [
        harness.submit(
            case.prompt, case.source, max_tokens=len(case.expected.tokens), num_logprobs=VOCAB
        )
        for case in cases
    ]
    harness.run()
    for request_id, case in zip(numbers, cases, strict=True):
        check(harness, request_id, case, TOLERANCE)
    assert max(report.batch.adapters for report in harness.reports if report.batch) == len(cases)
