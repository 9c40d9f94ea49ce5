"""The same requests in one batch after another, held against each alone to the last bit."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from loramux_server.wire.adapter_source import AdapterSource
from loramux_server.wire.messages import Failure, Token
from tests.support.adapters import pack_source, save_adapter
from tests.support.engine import Harness
from tests.support.models import VOCAB, tiny_model

NUM_TOKENS = 5
NUM_ADAPTERS = 3
SHAPE: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 32,
}  # fmt: skip
Request = tuple[tuple[int, ...], int | None]
"""A prompt and the number of its adapter."""


def model(**changes: Any) -> PreTrainedModel:
    return tiny_model("llama", **{**SHAPE, **changes})


def saved_sources(folder: Path) -> list[AdapterSource]:
    """Save adapters of several ranks to `folder`."""
    found = []
    for number in range(NUM_ADAPTERS):
        saved = save_adapter(
            model(), folder / str(number), seed=number, r=(4, 16, 13)[number],
            target_modules="all-linear",
        )  # fmt: skip
        found.append(pack_source(saved, folder / f"{number}.package"))
    return found


class Batches:
    """The same requests, in one batch after another."""

    def __init__(self, sources: list[AdapterSource], **config: Any) -> None:
        self.sources = sources
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
            source = None if adapter is None else self.sources[adapter]
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
