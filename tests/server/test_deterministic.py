"""Tokens and log-probabilities that are the same to the last bit whatever else is in the batch."""

import random
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest
from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig
from safetensors.torch import load_file, save_file

from loramux_adapters.embedding import Pooling
from loramux_adapters.head import Task
from loramux_server.models.loading import load_base_model
from loramux_server.models.servable import UnservableModelError
from loramux_server.wire.adapter_source import AdapterSource
from tests.parity.test_methods import lora, save
from tests.support.adapters import pack_source, save_adapter, save_tuned
from tests.support.batches import NUM_ADAPTERS, Batches, content, model, saved_sources
from tests.support.classifiers import classifier
from tests.support.encoder_models import own_model, save_encoder_base
from tests.support.engine import Harness

NUM_COMPOSITIONS = 25


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[AdapterSource]:
    return saved_sources(tmp_path_factory.mktemp("adapters"))


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory: pytest.TempPathFactory) -> AdapterSource:
    """An adapter with finite weights whose keys and values overflow."""
    folder = tmp_path_factory.mktemp("poisoned")
    saved = save_adapter(model(), folder / "a", seed=9, r=8, target_modules="all-linear")
    path = saved / "adapter_model.safetensors"
    save_file({name: weight * 1e18 for name, weight in load_file(path).items()}, path)
    return pack_source(saved, folder / "a.package")


@pytest.mark.parametrize("prefix_cache", [True, False])
def test_no_bit_depends_on_the_batch(sources: list[AdapterSource], prefix_cache: bool) -> None:
    batches = Batches(sources, deterministic=True, prefix_cache=prefix_cache)
    assert list(batches.differences(NUM_COMPOSITIONS)) == []


def test_nor_does_one_where_an_adapter_begins_in_the_prompt(sources: list[AdapterSource]) -> None:
    batches = Batches(list(sources), deterministic=True)
    seen = Counter(
        token for prompt, number in batches.requests if number == 0 for token in set(prompt[1:-1])
    )
    ((token, count),) = seen.most_common(1)
    assert count > 1
    batches.sources[0] = msgspec.structs.replace(sources[0], invocation=(token,))
    assert list(batches.differences(NUM_COMPOSITIONS)) == []


def test_virtual_tokens_send_nobody_another_way(
    sources: list[AdapterSource], tmp_path: Path
) -> None:
    virtual = [
        pack_source(
            save(
                model(),
                kind(task_type="CAUSAL_LM", num_virtual_tokens=6),
                tmp_path / str(seed),
                seed,
            ),
            tmp_path / f"{seed}.package",
        )
        for seed, kind in enumerate((PromptTuningConfig, PrefixTuningConfig))
    ]
    batches = Batches([*virtual, sources[0]], deterministic=True)
    assert list(batches.differences(8)) == []


@pytest.mark.parametrize("name", ["deberta-v2", "t5"])
def test_no_bit_of_a_text_that_is_read_as_a_whole_depends_on_the_batch(
    name: str, tmp_path: Path
) -> None:
    folder = save_encoder_base(name, tmp_path / "base")
    base = load_base_model(str(folder))
    task = "SEQ_2_SEQ_LM" if base.source_length else "FEATURE_EXTRACTION"
    adapters: list[AdapterSource | None] = [None]
    for rank in (4, 24):
        config = LoraConfig(task_type=task, r=rank, target_modules=list(base.places)[rank % 3 :: 2])
        saved = tmp_path / str(rank)
        save_tuned(own_model(folder), config, saved, seed=rank)
        adapters.append(pack_source(saved, tmp_path / f"{rank}.package"))
    harness = Harness(base, kernels="cpu", deterministic=True, prefix_cache=False)
    rng = random.Random(8)
    texts = [[rng.randrange(3, 200) for _ in range(length)] for length in (1, 5, 30, 30, 12)]

    def given(number: int) -> int:
        text, adapter = texts[number], adapters[number % 3]
        if base.source_length:
            return harness.submit(
                [*text, 2], adapter, num_source=len(text), max_tokens=6, num_logprobs=20
            )
        return harness.submit(text, adapter, pooling=Pooling.MEAN)

    def reported(request_id: int) -> object:
        return harness.scores.get(request_id) and harness.scores[request_id].numbers, [
            (token.token, token.logprobs) for token in harness.tokens[request_id]
        ]

    alone = []
    for number in range(len(texts)):
        request_id = given(number)
        harness.run()
        alone.append(reported(request_id))
    together = []
    for number in range(len(texts)):
        together.append(given(number))
        if number % 2:
            harness.step()
    harness.run()
    assert [reported(request_id) for request_id in together] == alone


@pytest.mark.parametrize("task", Task)
def test_no_bit_of_a_label_depends_on_the_batch(
    sources: list[AdapterSource], tmp_path: Path, task: Task
) -> None:
    config = LoraConfig(task_type=str(task), r=4, target_modules=["q_proj", "down_proj"])
    save_tuned(classifier(model(), task, 3), config, tmp_path / "a", seed=1)
    source = pack_source(tmp_path / "a", tmp_path / "a.package")
    texts = [[5 + i % 30 for i in range(length)] for length in (1, 7, 40)]
    found = set()
    for max_batch_tokens in (8, 13, 64):
        for num_others in (0, 1, 5):
            harness = Harness(
                model(), kernels="cpu", deterministic=True, num_blocks=200,
                max_batch_tokens=max_batch_tokens,
            )  # fmt: skip
            for number in range(num_others):
                harness.submit([7 + number] * 9, sources[number % NUM_ADAPTERS], max_tokens=4)
            asked = [harness.submit(text, source) for text in texts]
            harness.run()
            found.add(tuple(harness.scores[request_id].numbers for request_id in asked))
    assert len(found) == 1


@pytest.mark.parametrize("pooling", [Pooling.LAST, Pooling.MEAN])
def test_no_bit_of_a_vector_depends_on_the_batch(
    sources: list[AdapterSource], pooling: Pooling
) -> None:
    texts = [[5 + i % 30 for i in range(length)] for length in (1, 7, 40)]
    found = set()
    for max_batch_tokens, num_others in ((8, 5), (13, 0), (64, 1)):
        harness = Harness(
            model(), kernels="cpu", deterministic=True, num_blocks=200,
            max_batch_tokens=max_batch_tokens,
        )  # fmt: skip
        for number in range(num_others):
            harness.submit([7 + number] * 9, sources[number % NUM_ADAPTERS], max_tokens=4)
        asked = [
            harness.submit(text, source, pooling=pooling)
            for text in texts for source in (None, sources[0])
        ]  # fmt: skip
        harness.run()
        found.add(tuple(harness.scores[request_id].numbers for request_id in asked))
    assert len(found) == 1


def test_no_bit_of_a_prompts_log_probabilities_depends_on_the_batch(
    sources: list[AdapterSource],
) -> None:
    prompts = [[5 + i % 30 for i in range(length)] for length in (2, 7, 40)]
    found = set()
    for max_batch_tokens, num_others in ((8, 5), (13, 0), (64, 1)):
        harness = Harness(
            model(), kernels="cpu", deterministic=True, num_blocks=200,
            max_batch_tokens=max_batch_tokens,
        )  # fmt: skip
        for number in range(num_others):
            harness.submit([7 + number] * 9, sources[number % NUM_ADAPTERS], max_tokens=4)
        asked = [
            harness.submit(prompt, source, max_tokens=0, num_prompt_logprobs=2)
            for prompt in prompts for source in (None, sources[0])
        ]  # fmt: skip
        harness.run()
        found.add(tuple(harness.prompts[request_id].numbers for request_id in asked))
    assert len(found) == 1


def test_bits_depend_on_the_batch_otherwise(sources: list[AdapterSource]) -> None:
    """So the test above can fail."""
    batches = Batches(sources, deterministic=False)
    assert next(batches.differences(NUM_COMPOSITIONS), None) is not None


def test_neighbours_of_a_poisoned_adapter_and_who_comes_after_it_are_what_they_were(
    sources: list[AdapterSource], poisoned: AdapterSource
) -> None:
    # There is room for two adapters and little more than one batch: all of it is used again.
    batches = Batches([*sources, poisoned], deterministic=True, rows=40, num_blocks=60)
    alone = batches.alone()
    for number in range(12):
        clean = batches.requests[number : number + 4]
        bad = [(prompt, NUM_ADAPTERS) for prompt, _ in batches.requests[:2]]
        found = batches.run([*bad, *clean, *bad], may_fail=True)
        for request, tokens in zip(clean, found[2:6], strict=True):
            assert content(tokens) == alone[request]
        assert [len(tokens) for tokens in found[:2] + found[6:]] == [0, 0, 0, 0]
    assert batches.alone() == alone


def test_an_adapter_that_sends_its_neighbours_another_way_is_refused(
    sources: list[AdapterSource], tmp_path: Path
) -> None:
    dora = lora(target_modules=["q_proj"], use_dora=True)
    saved = save(model(), dora, tmp_path / "a", seed=1)
    batches = Batches([pack_source(saved, tmp_path / "a.package")], deterministic=True)
    assert batches.run([((5, 6, 7), 0), ((5, 6, 7), None)], may_fail=True)[0] == []
    (failure,) = batches.failures
    assert failure.reason == "UNSUPPORTED_ADAPTER_FEATURE"


@pytest.mark.parametrize(
    ("changes", "config", "message"),
    [
        pytest.param({}, {"kernels": "torch"}, "no deterministic mode", id="other-kernels"),
        pytest.param({"intermediate_size": 40}, {}, "composition of the batch", id="odd-width"),
        pytest.param({}, {"tensor_parallel": 2}, "tensor_parallel must be 1, got 2", id="parallel"),
    ],
)
def test_what_cannot_be_had_is_refused_at_the_start(
    changes: dict[str, Any], config: dict[str, Any], message: str
) -> None:
    with pytest.raises(UnservableModelError, match=message):
        Harness(model(**changes), **{"kernels": "cpu", "deterministic": True, **config})
