"""Each row of a mixed batch equals PEFT with that adapter alone, for many architectures."""

import copy
import random
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from loramux_server.wire.adapter_source import AdapterSource
from tests.support.adapters import Expected, expected, pack_source, save_adapter, with_adapter
from tests.support.engine import Harness
from tests.support.models import CONFIGS, RECURRENT, VOCAB, tiny_model

RANKS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
ROWS = 128  # as many as two adapters of rank 64 take
ROWS_OF = {"qwen3-next": 2 * ROWS}
"""Where PEFT makes one change of rank 2r of those of the gate and the layer beside it."""
LEFT_OUT = {
    "falcon_h1": "out_proj",
    "nemotron_h": "out_proj",
    "mamba2": "out_proj",
    "jamba": "dt_proj",
}
"""Model -> layer that PEFT does not adapt, or that is adapted to no effect."""
LOGPROB_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Case:
    """One request and what PEFT makes of it."""

    prompt: list[int]
    source: AdapterSource | None
    expected: Expected


def target_modules(model: PreTrainedModel) -> list[list[str]]:
    """Return several sets of names of layers that an adapter may target."""
    names = sorted({
        name.rpartition(".")[2]
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear | Conv1D) and layer is not model.get_output_embeddings()
    })  # fmt: skip
    names = [name for name in names if name != LEFT_OUT.get(model.config.model_type)]
    return [names, names[::2], names[1::2] or names, names[-1:]]


def cases(model: PreTrainedModel, folder: Path, num_requests: int) -> list[Case]:
    """Return requests for twelve adapters and the base in turn, prompts of unequal length."""
    rng = random.Random(0)
    targets = target_modules(model)
    variants: list[tuple[nn.Module, AdapterSource | None]] = [(model, None)]
    for seed, rank in enumerate(RANKS):
        saved = save_adapter(
            model,
            folder / f"r{rank}",
            seed=seed,
            r=rank,
            lora_alpha=2 * rank,
            use_rslora=seed % 4 == 3,
            target_modules=targets[seed % len(targets)],
        )
        variants.append((with_adapter(model, saved), pack_source(saved, folder / f"{rank}.pkg")))
    found = []
    for index in range(num_requests):
        wrapped, source = variants[index % len(variants)]
        prompt = [rng.randrange(3, VOCAB) for _ in range(rng.randint(1, 30))]
        found.append(Case(prompt, source, expected(wrapped, prompt, rng.randint(2, 8))))
    return found


def check(
    harness: Harness, request_id: int, case: Case, tolerance: float = LOGPROB_TOLERANCE
) -> None:
    assert harness.output(request_id) == case.expected.tokens
    for token, logprob_V in zip(harness.tokens[request_id], case.expected.logprobs, strict=True):
        assert token.logprobs is not None
        ours = torch.full_like(logprob_V, float("nan"))
        for top, logprob in token.logprobs.top:
            ours[top] = logprob
        torch.testing.assert_close(ours, logprob_V, rtol=0, atol=tolerance)


@pytest.mark.parametrize("architecture", [*CONFIGS, *RECURRENT])
def test_a_mixed_batch_equals_peft_alone(architecture: str, tmp_path: Path) -> None:
    model = tiny_model(architecture)
    requests = cases(model, tmp_path, num_requests=26)
    # Prompts run in chunks, blocks run out, and twelve adapters share the room of two.
    harness = Harness(
        copy.deepcopy(model), kernels="cpu", rows=ROWS_OF.get(architecture, ROWS), num_blocks=30,
        max_batch_tokens=24, max_running=8, host_adapter_memory=1 << 20,
    )  # fmt: skip
    for index, case in enumerate(requests):
        harness.submit(
            case.prompt, case.source, max_tokens=len(case.expected.tokens), num_logprobs=VOCAB
        )
        if index % 3 == 2:  # the others join while these run
            harness.step()
    harness.run()
    for request_id, case in enumerate(requests):
        check(harness, request_id, case)
    stats = harness.reports[-1].stats
    assert stats.device.evictions > 0
    assert stats.preemptions > 0 or architecture in RECURRENT  # whose states lack first
    assert max(report.batch.adapters for report in harness.reports if report.batch) > 1


def test_the_plain_definitions_give_the_same(tmp_path: Path) -> None:
    model = tiny_model("llama")
    requests = cases(model, tmp_path, num_requests=13)
    harness = Harness(copy.deepcopy(model), kernels="torch", rows=ROWS, num_blocks=200)
    for case in requests:
        harness.submit(
            case.prompt, case.source, max_tokens=len(case.expected.tokens), num_logprobs=VOCAB
        )
    harness.run()
    for request_id, case in enumerate(requests):
        check(harness, request_id, case)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_half_precision_base_stays_close_to_peft(dtype: torch.dtype, tmp_path: Path) -> None:
    model = tiny_model("llama").to(dtype)
    saved = save_adapter(model, tmp_path / "a", seed=1, r=8, target_modules=["q_proj", "up_proj"])
    source = pack_source(saved, tmp_path / "a.pkg")
    prompt = list(range(3, 23))
    reference = expected(with_adapter(model, saved), prompt, 1).logprobs[0]
    harness = Harness(copy.deepcopy(model), kernels="cpu", rows=64, num_blocks=50)
    harness.submit(prompt, source, max_tokens=1, num_logprobs=VOCAB)
    harness.run()
    (token,) = harness.tokens[0]
    assert token.logprobs is not None
    ours = torch.tensor([logprob for _, logprob in sorted(token.logprobs.top)])
    epsilon = torch.finfo(dtype).eps
    assert (ours - reference).abs().max() < 16 * epsilon * reference.abs().max()
