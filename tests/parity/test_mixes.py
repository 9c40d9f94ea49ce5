"""Mixes and scaled adapters, many in one batch, each equal to PEFT with that mix alone."""

import copy
import random
from pathlib import Path
from typing import Any

import pytest
from peft import PeftModel
from transformers import PreTrainedModel

from loramux_server.lora.mix import mixed
from loramux_server.wire.adapter_source import AdapterSource, Combination
from tests.parity.test_methods import lora, save
from tests.parity.test_peft import Case, check, target_modules
from tests.support.adapters import expected, pack_source, quiet_peft, save_adapter
from tests.support.engine import Harness
from tests.support.models import VOCAB, tiny_model

CAT, LINEAR = Combination.CAT, Combination.LINEAR
MIXES: list[tuple[dict[str, float], Combination]] = [
    ({"a": 0.7, "b": 0.3}, CAT),
    ({"b": 0.3, "a": 0.7}, LINEAR),
    ({"a": 1.0, "b": -0.5, "c": 0.25, "short": 2.0}, CAT),
    ({"a": 1.0, "b": -0.5}, LINEAR),
    ({"c": 1.0, "b": 1.0}, CAT),
    ({"a": 0.5}, CAT),
    ({"a": -1.5}, CAT),
    ({"short": 3.0}, CAT),
    ({"a": 1.0}, CAT),
]


def adapters(model: PreTrainedModel, folder: Path) -> dict[str, Path]:
    """Save adapters of several ranks, targets and formats."""
    names = target_modules(model)[0]
    configs: dict[str, dict[str, Any]] = {
        "a": {"r": 6, "lora_alpha": 9, "target_modules": names},
        "b": {"r": 6, "lora_alpha": 3, "target_modules": names[::2]},
        "c": {
            "r": 3,
            "lora_alpha": 6,
            "target_modules": names[-1:],
            "rank_pattern": {names[-1]: 9},
        },
        "short": {"r": 12, "lora_alpha": 5, "target_modules": names[:1]},
    }
    saved = {}
    for seed, (name, config) in enumerate(configs.items()):
        like = copy.deepcopy(model).bfloat16() if name == "short" else model
        saved[name] = save_adapter(like, folder / name, seed=seed, **config)
    return saved


def cases(model: PreTrainedModel, folder: Path) -> list[Case]:
    rng = random.Random(0)
    saved = adapters(model, folder)
    sources = {name: pack_source(path, folder / f"{name}.pkg") for name, path in saved.items()}
    with quiet_peft():
        wrapped = PeftModel.from_pretrained(copy.deepcopy(model), str(saved["a"]), "a").eval()
        for name in ("b", "c", "short"):
            wrapped.load_adapter(str(saved[name]), name)
        for index, (weights, combination) in enumerate(MIXES):
            wrapped.base_model.add_weighted_adapter(
                list(weights), list(weights.values()), str(index), combination_type=combination
            )
    found = []
    for index, (weights, combination) in enumerate(MIXES):
        wrapped.set_adapter(str(index))
        source = mixed([sources[name] for name in weights], list(weights.values()), combination)
        for _ in range(2):
            prompt = [rng.randrange(3, VOCAB) for _ in range(rng.randint(1, 20))]
            found.append(Case(prompt, source, expected(wrapped, prompt, rng.randint(2, 6))))
    prompt = [rng.randrange(3, VOCAB) for _ in range(9)]
    found.append(Case(prompt, None, expected(model, prompt, 5)))
    rng.shuffle(found)
    return found


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gpt2"])
def test_every_row_has_its_own_mix(architecture: str, tmp_path: Path) -> None:
    model = tiny_model(architecture)
    requests = cases(model, tmp_path)
    harness = Harness(
        copy.deepcopy(model), kernels="torch" if architecture == "qwen3" else "cpu", rows=96,
        num_blocks=200, max_batch_tokens=24, max_running=8, host_adapter_memory=1 << 20,
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
    assert harness.reports[-1].stats.device.evictions > 0
    assert max(report.batch.adapters for report in harness.reports if report.batch) > 2


def test_what_cannot_be_mixed_fails_alone(tmp_path: Path) -> None:
    model = tiny_model("llama")
    names = target_modules(model)[0]
    one = save_adapter(model, tmp_path / "1", seed=1, r=6, target_modules=names)
    other = save_adapter(
        model, tmp_path / "2", seed=2, r=6, target_modules=names, rank_pattern={"q_proj": 2}
    )
    dora = save(model, lora(target_modules=names, use_dora=True), tmp_path / "3", 3)
    sources: list[AdapterSource] = [
        pack_source(folder, tmp_path / f"{folder.name}.pkg") for folder in (one, other, dora)
    ]
    harness = Harness(copy.deepcopy(model), rows=64, num_blocks=50)
    ids = [
        harness.submit([5, 6], mixed(sources[:2], [1.0, 0.5], LINEAR)),
        harness.submit([5, 6], mixed([sources[0], sources[2]], [1.0, 0.5], CAT)),
        harness.submit([5, 6], mixed(sources[2:], [0.5], CAT)),
    ]
    fine = harness.submit([5, 6], sources[0], max_tokens=2)
    harness.run()
    for request_id, says in zip(ids, ("ranks", "low-rank", "low-rank"), strict=True):
        failure = harness.failures[request_id]
        assert failure.reason == "ADAPTER_NOT_MIXABLE"
        assert says in failure.message
    assert len(harness.output(fine)) == 2


def test_a_mix_is_the_same_whatever_the_order_and_with_others_it_is_another(
    tmp_path: Path,
) -> None:
    a, b = (AdapterSource(f"sha256:{name}", f"/{name}", 8, 64) for name in "ab")
    same = mixed([a, b], [0.5, 0.25], CAT)
    assert same == mixed([b, a], [0.25, 0.5], CAT)
    assert same is not None
    others = [
        mixed([a, b], [0.25, 0.5], CAT),
        mixed([a, b], [0.5, 0.25], LINEAR),
        mixed([a], [0.5], CAT),
        a,
    ]
    assert len({same.digest, *(other.digest for other in others if other)}) == 5
    assert (same.rank, same.num_bytes, same.item_bytes) == (16, 128, 4)
    assert mixed([a, b], [1.0, 0.0], CAT) == a
    assert mixed([a, b], [0.0, 0.0], CAT) is None


def test_a_mix_of_what_rests_in_16_bits_is_not_rounded() -> None:
    source = AdapterSource("sha256:a", "/a", 8, 64, item_bytes=2)
    other = AdapterSource("sha256:b", "/b", 8, 64, item_bytes=2)
    whole = mixed([source, other], [0.3, 0.7], CAT)
    assert whole is not None
    assert (whole.item_bytes, whole.num_bytes) == (4, 256)
    scaled = mixed([source], [0.3], CAT)
    assert scaled is not None
    assert (scaled.item_bytes, scaled.num_bytes) == (2, 64)
