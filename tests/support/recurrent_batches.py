"""Batches on bases some of whose layers are recurrent, each answer held against itself alone.

Prompts begin alike, so that requests go on from what others knew; states and blocks are scarce;
some requests are paused or given up on the way.
"""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from loramux_adapters.embedding import Pooling
from loramux_server.engine.block_manager import BlockManager
from loramux_server.engine.state_keeper import StateKeeper
from loramux_server.wire.adapter_source import AdapterSource
from loramux_server.wire.messages import Logprobs, Pause, Resume, Token
from tests.parity.test_peft import target_modules
from tests.support.adapters import pack_source, save_adapter
from tests.support.engine import Harness
from tests.support.models import VOCAB, tiny_model

NUM_REQUESTS = 24
MAX_TOKENS = 24
SIZE = 4
"""Tokens of a KV block."""
ROOMS = ((36, 12), (200, 5))
"""KV blocks, and states of recurrent layers: either of them is scarce."""
EXPERTS = ["experts.gate_up_proj", "experts.down_proj"]
TOLERANCE = 1e-3
"""By which log-probabilities may differ."""
Request = tuple[tuple[int, ...], int | None, int]
"""A prompt, the number of its adapter, and how many tokens it gets."""


def has_experts(model: PreTrainedModel) -> bool:
    """Return whether adapters of `EXPERTS` fit `model`."""
    return any(name.endswith("experts.gate_up_proj") for name, _ in model.named_parameters())


def saved_sources(model: PreTrainedModel, folder: Path) -> list[AdapterSource]:
    """Save adapters of recurrent and other layers, and of experts if there are any."""
    targets = target_modules(model)
    kinds: list[dict[str, Any]] = [
        {"r": 4, "target_modules": targets[0]},
        {"r": 13, "target_modules": targets[1]},
    ]
    if has_experts(model):
        kinds.append({"r": 3, "target_modules": targets[3], "target_parameters": EXPERTS})
    return [
        pack_source(
            save_adapter(model, folder / str(number), seed=number, **kind),
            folder / f"{number}.package",
        )
        for number, kind in enumerate(kinds)
    ]


class RecurrentBatches:
    """The same requests on one base, in one batch after another."""

    def __init__(self, architecture: str, folder: Path) -> None:
        """Make the base, and its adapters in `folder`."""
        self.sources = saved_sources(tiny_model(architecture), folder)
        self._architecture = architecture
        self._random = random.Random(0)
        self._harnesses = [self._scarce(*room) for room in ROOMS]
        self.requests = [self._request() for _ in range(NUM_REQUESTS)]

    def _made(self, **config: Any) -> Harness:
        base = tiny_model(self._architecture)
        return Harness(base, kernels="cpu", rows=128, block_size=SIZE, kv_memory=16 << 20, **config)

    def _scarce(self, num_blocks: int, num_states: int) -> Harness:
        harness = self._made(max_running=6)
        contexts = harness.engine._scheduler._contexts
        contexts._blocks = BlockManager(num_blocks, SIZE)
        assert contexts._states is not None
        contexts._states = StateKeeper(num_states, SIZE, keeps=contexts._states._keeps)
        return harness

    def _request(self) -> Request:
        choice = self._random
        stem = [random.Random(length).randrange(3, VOCAB) for length in range(40)]
        tail = choice.choices(range(3, VOCAB), k=choice.choice([1, 2, 7]))
        prompt = (*stem[: choice.choice([0, 0, 4, 9, 22, 40])], *tail)
        adapter = choice.choice([None, *range(len(self.sources))])
        return prompt, adapter, choice.choice([1, 5, MAX_TOKENS])

    @property
    def num_shared_tokens(self) -> int:
        """Tokens of prompts that were not computed, since others had begun with them."""
        return sum(harness.engine._scheduler.num_shared_tokens for harness in self._harnesses)

    @property
    def num_preemptions(self) -> int:
        """How often a request had to start over."""
        return sum(harness.engine._scheduler.num_preemptions for harness in self._harnesses)

    def alone(self) -> dict[Request, list[Token]]:
        """Return what comes of each where nothing else is, and nothing is shared."""
        harness = self._made(prefix_cache=False)
        found = {}
        for request in self.requests:
            number = self._submit(harness, request)
            harness.run()
            found[request] = harness.tokens[number]
        return found

    def differences(self, count: int) -> Iterator[Request]:
        """Yield what comes out otherwise in one of `count` random batches than alone."""
        alone = self.alone()
        for _ in range(count):
            chosen = self._random.choices(self.requests, k=self._random.randint(2, 12))
            for request, tokens in zip(chosen, self._run(chosen), strict=True):
                if differ(tokens, alone[request]):
                    yield request

    def _run(self, requests: list[Request]) -> list[list[Token]]:
        choice = self._random
        harness = choice.choice(self._harnesses)
        scheduler = harness.engine._scheduler
        scheduler._max_batch_tokens = choice.choice([5, 17, 64, 300])
        given_up, ids = [], []
        for request in requests:
            ids.append(self._submit(harness, request))
            if choice.random() < 0.2:
                pooling = choice.choice([None, Pooling.MEAN])
                given_up.append(
                    self._submit(harness, choice.choice(self.requests), pooling=pooling)
                )
            for _ in range(choice.choice([0, 0, 0, 1, 4])):
                harness.step()
            if choice.random() < 0.3:
                harness.engine.receive([Pause(choice.choice(ids))])
            if choice.random() < 0.3:
                harness.engine.receive([Resume(choice.choice(ids))])
        for each in given_up:
            harness.cancel(each)
        harness.engine.receive([Resume(each) for each in ids])
        harness.run()
        assert not harness.failures, harness.failures
        scheduler._contexts.check([])
        return [harness.tokens[each] for each in ids]

    def _submit(self, harness: Harness, request: Request, *, pooling: Pooling | None = None) -> int:
        prompt, adapter, max_tokens = request
        source = None if adapter is None else self.sources[adapter]
        return harness.submit(
            prompt, source, pooling=pooling, max_tokens=max_tokens, num_logprobs=2
        )


def differ(found: list[Token], wanted: list[Token]) -> bool:
    """Return whether an answer is another one by more than rounding.

    Where two tokens are about as likely, either may come, and what follows is something else.
    """
    if len(found) != len(wanted):
        return True
    for one, other in zip(found, wanted, strict=True):
        ours, theirs = one.logprobs, other.logprobs
        assert ours is not None
        assert theirs is not None
        if one.token != other.token:
            return _margin(theirs) > TOLERANCE
        if not abs(ours.chosen - theirs.chosen) <= TOLERANCE:
            return True
    return False


def _margin(logprobs: Logprobs) -> float:
    (_, first), (_, second) = logprobs.top
    return first - second
