"""Tokens and log-probabilities that are the same to the last bit whatever else is in the batch."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from loramux_server.engine.messages import AdapterSource, Failure, Token
from loramux_server.models.base_model import UnservableModelError
from tests.parity.test_methods import lora, save
from tests.support.adapters import pack_source, save_adapter
from tests.support.engine import Harness
from tests.support.models import VOCAB, tiny_model

NUM_TOKENS = 5
NUM_ADAPTERS = 3
NUM_COMPOSITIONS = 40
SHAPE: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 32,
}  # fmt: skip
Request = tuple[tuple[int, ...], int | None]
"""A prompt and the number of its adapter."""


def model(**changes: Any) -> PreTrainedModel:
    return tiny_model("llama", **{**SHAPE, **changes})


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[AdapterSource]:
    folder = tmp_path_factory.mktemp("adapters")
    found = []
    for number in range(NUM_ADAPTERS):
        saved = save_adapter(
            model(), folder / str(number), seed=number, r=(4, 16, 13)[number],
            target_modules="all-linear",
        )  # fmt: skip
        found.append(pack_source(saved, folder / f"{number}.package"))
    return found


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory: pytest.TempPathFactory) -> AdapterSource:
    """An adapter with finite weights whose keys and values overflow."""
    folder = tmp_path_factory.mktemp("poisoned")
    saved = save_adapter(model(), folder / "a", seed=9, r=8, target_modules="all-linear")
    path = saved / "adapter_model.safetensors"
    save_file({name: weight * 1e18 for name, weight in load_file(path).items()}, path)
    return pack_source(saved, folder / "a.package")


class Batches:
    """The same requests, in one batch after another."""

    def __init__(self, sources: list[AdapterSource], **config: Any) -> None:
        self._sources = sources
        self._random = random.Random(0)
        self._config = {
            "kernels": "cpu", "max_running": 16, "block_size": 4, "rows": 64, "num_blocks": 400,
            **config,
        }  # fmt: skip
        self._harness = Harness(model(), **self._config)
        self.requests: list[Request] = [
            (tuple(self._random.choices(range(3, VOCAB), k=self._random.choice([1, 3, 9, 30]))),
             self._random.choice([None, 0, 0, 1, 2]))
            for _ in range(20)
        ]  # fmt: skip

    def run(
        self, requests: list[Request], *, max_batch_tokens: int = 64, may_fail: bool = False
    ) -> list[list[Token]]:
        """Return the tokens of each of `requests`, which run together and start at random."""
        harness = self._harness
        harness.engine._scheduler._max_batch_tokens = max_batch_tokens
        ids = []
        for prompt, adapter in requests:
            source = None if adapter is None else self._sources[adapter]
            ids.append(harness.submit(prompt, source, max_tokens=NUM_TOKENS, num_logprobs=3))
            for _ in range(self._random.choice([0, 0, 0, 1, 2])):
                harness.step()
        harness.run()
        assert may_fail or harness.failures.keys().isdisjoint(ids)
        return [harness.tokens[number] for number in ids]

    @property
    def failures(self) -> list[Failure]:
        return list(self._harness.failures.values())

    def alone(self) -> dict[Request, list[tuple[int, Any]]]:
        return {request: content(self.run([request])[0]) for request in self.requests}

    def differences(self, count: int) -> Iterator[Request]:
        """Yield what comes out otherwise in one of `count` random batches than alone."""
        alone = self.alone()
        for _ in range(count):
            chosen = self._random.choices(self.requests, k=self._random.randint(2, 16))
            found = self.run(chosen, max_batch_tokens=self._random.choice([5, 17, 64, 300]))
            for request, tokens in zip(chosen, found, strict=True):
                if content(tokens) != alone[request]:
                    yield request


def content(tokens: list[Token]) -> list[tuple[int, Any]]:
    """Return tokens and log-probabilities, whose floats are equal only if all bits are."""
    return [(token.token, token.logprobs) for token in tokens]


@pytest.mark.parametrize("prefix_cache", [True, False])
def test_no_bit_depends_on_the_batch(sources: list[AdapterSource], prefix_cache: bool) -> None:
    batches = Batches(sources, deterministic=True, prefix_cache=prefix_cache)
    assert list(batches.differences(NUM_COMPOSITIONS)) == []


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
        pytest.param({}, {"kernels": "torch"}, "no deterministic form", id="other-kernels"),
        pytest.param({"intermediate_size": 40}, {}, "depend on how a batch", id="odd-width"),
        pytest.param({}, {"tensor_parallel": 2}, "tensor_parallel can only be 1", id="parallel"),
    ],
)
def test_what_cannot_be_had_is_refused_at_the_start(
    changes: dict[str, Any], config: dict[str, Any], message: str
) -> None:
    with pytest.raises(UnservableModelError, match=message):
        Harness(model(**changes), **{"kernels": "cpu", "deterministic": True, **config})
