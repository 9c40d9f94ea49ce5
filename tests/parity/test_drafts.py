"""Tokens that are checked several in a step: the same as PEFT gives one after the other."""

import copy
import random
from pathlib import Path
from typing import Any

import pytest

from tests.parity.test_activated import cases as activated_cases
from tests.parity.test_ends import ends, saved_case
from tests.parity.test_methods import cases, configs, virtual_configs
from tests.parity.test_peft import Case, check
from tests.parity.test_saved import TOLERANCE
from tests.support.batches import Batches, content, saved_sources
from tests.support.batches import model as make
from tests.support.engine import Harness
from tests.support.models import VOCAB, tiny_model

DRAFTS: dict[str, Any] = {"speculative_tokens": 6}


def ask(harness: Harness, requests: list[Case], tolerance: float | None = None) -> None:
    """Demand what is expected of each of `requests`, whose answers are foretold nearly right."""
    rng = random.Random(1)
    for index, case in enumerate(requests):
        foretold = [
            token if rng.random() < 0.8 else rng.randrange(3, VOCAB)
            for token in case.expected.tokens
        ]
        harness.submit(
            case.prompt, case.source, max_tokens=len(case.expected.tokens), prediction=foretold,
            num_logprobs=case.expected.logprobs.shape[1],
        )  # fmt: skip
        if index % 3 == 2:  # the others join while these run
            harness.step()
    harness.run()
    for index, case in enumerate(requests):
        check(harness, index, case, *([tolerance] if tolerance else []))
    batches = [report.batch for report in harness.reports if report.batch]
    accepted = sum(batch.accepted for batch in batches)
    assert 0 < accepted < sum(batch.drafted for batch in batches)


@pytest.mark.parametrize("kernels", ["cpu", "torch"])
@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_every_method_equals_peft(architecture: str, kernels: str, tmp_path: Path) -> None:
    model = tiny_model(architecture)
    methods = configs(model) | virtual_configs() if architecture == "llama" else configs(model)
    requests = cases(model, tmp_path / "methods", methods)
    if architecture == "llama":
        requests += activated_cases(model, tmp_path / "activated")[::3]
    harness = Harness(
        copy.deepcopy(model), kernels=kernels, rows=512, num_blocks=200, max_batch_tokens=48,
        **DRAFTS,
    )  # fmt: skip
    ask(harness, requests)


def test_changed_ends_equal_peft(tmp_path: Path) -> None:
    model = make(tie_word_embeddings=False)
    rng = random.Random(0)
    requests = [
        saved_case(model, config, tmp_path / name, seed, [rng.randrange(3, VOCAB)] * 5)
        for seed, (name, config) in enumerate(ends(model).items())
    ]
    harness = Harness(copy.deepcopy(model), kernels="cpu", rows=1024, **DRAFTS)
    ask(harness, requests, TOLERANCE)


def test_no_bit_depends_on_drafts(tmp_path: Path) -> None:
    sources = saved_sources(tmp_path)
    plain = Batches(sources, deterministic=True).alone()
    drafting = Batches(sources, deterministic=True, **DRAFTS)
    for _ in range(2):  # the second time there is something to be drafted
        for request, found in zip(drafting.requests, drafting.run(drafting.requests), strict=True):
            assert content(found) == plain[request]
    assert sum(r.batch.accepted for r in drafting._harness.reports if r.batch) > 20
