"""An engine without a model: it computes a checksum of everything that a token should have seen.

The fake keeps a KV cache of (token, adapter) pairs and a slab of adapter numbers. A wrong block
table, a reused block or a reused row changes the checksum, and so the tokens.
"""

import itertools
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any

import numpy as np
import torch

from loramux_adapters.head import Task
from loramux_server.engine.admission import Admission
from loramux_server.engine.base import Base
from loramux_server.engine.batch import Batch, PromptTokens
from loramux_server.engine.block_manager import BlockManager
from loramux_server.engine.contexts import Contexts
from loramux_server.engine.ends import Ends
from loramux_server.engine.engine import Engine
from loramux_server.engine.flight import Chosen, DeviceOutcome
from loramux_server.engine.image_encoder import ImageEncoder
from loramux_server.engine.pace import Pace
from loramux_server.engine.request import Request
from loramux_server.engine.residents import Clock, Residents
from loramux_server.engine.sampler import are_finite, likeliest, sample
from loramux_server.engine.scheduler import Scheduler
from loramux_server.engine.speculation import Speculation
from loramux_server.engine.state_keeper import StateKeeper
from loramux_server.engine.structured_output import MaskProvider
from loramux_server.engine.token_counts import counts_of
from loramux_server.kernels.adjust import adjust
from loramux_server.kernels.draw import draw
from loramux_server.kernels.logprobs import logprobs
from loramux_server.kernels.prompt_logprobs import prompt_logprobs
from loramux_server.kernels.states import BEGINNING, StateBatch
from loramux_server.lora.adapter_cache import AdapterCache
from loramux_server.lora.edits import Edits
from loramux_server.lora.head import Head
from loramux_server.lora.packed import DamagedError, PackedAdapter
from loramux_server.lora.row_allocator import RowSize
from loramux_server.lora.virtual import Virtual
from loramux_server.wire.adapter_source import AdapterSource
from loramux_server.wire.sampling import MAX_LOGPROBS, Sampling
from loramux_server.wire.weight_format import WeightFormat

VOCAB = 64
BLOCK_SIZE = 4
EOS = 1
_BEGINNING = 7
"""Checksum of nothing."""


class FakePacked(PackedAdapter):
    """Stands for packed weights: a number in place of them."""

    __slots__ = ("number",)

    def __init__(self, number: int, rank: int) -> None:
        ranks, scales = np.full((1, 1), rank, np.int32), np.ones((1, 1), np.float32)
        super().__init__(rank, WeightFormat.FLOAT32, [], ranks, scales)
        object.__setattr__(self, "number", number)


class HeldExecutor(Executor):
    """Does nothing until it is told to."""

    def __init__(self) -> None:
        self._held: list[tuple[Future[Any], Callable[[], Any]]] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self._held.append((future, lambda: fn(*args, **kwargs)))
        return future

    def __len__(self) -> int:
        return len(self._held)

    def finish(self, index: int = 0) -> None:
        """Do one of the things that are held."""
        future, work = self._held.pop(index)
        try:
            future.set_result(work())
        except DamagedError as error:
            future.set_exception(error)


class FakeModel:
    """Runner, slab and loader in one."""

    def __init__(self) -> None:
        self._rows: dict[int, int] = {}
        self._cache: dict[int, tuple[int, int]] = {}
        self._states: dict[int, int] = {BEGINNING: _BEGINNING}
        """Slot -> checksum of all that its request has seen."""
        self.broken: set[int] = set()
        """Adapters whose files are damaged."""
        self.seals: dict[str, str] = {}
        """What loads found out and nobody was told yet."""
        self.num_ahead = 0
        """Steps that were started with tokens of a step that was not known to have ended."""

    def load(self, source: AdapterSource) -> PackedAdapter:
        number = int(source.path)
        if number in self.broken:
            raise DamagedError("flipped bits")
        return FakePacked(number, source.rank)

    def take_seals(self) -> dict[str, str]:
        seals, self.seals = self.seals, {}
        return seals

    def write(self, source: AdapterSource, row: int, adapter: PackedAdapter) -> Edits | None:
        assert source.path == str(adapter.number)  # type: ignore[attr-defined]
        assert isinstance(adapter, FakePacked)
        self._rows[row] = adapter.number  # type: ignore[attr-defined]
        if source.task:
            return Edits(head=Head(torch.ones(1, 1), torch.zeros(1)))
        if not source.virtual_tokens:
            return None
        tokens = virtual_tokens(adapter.number, source.virtual_tokens)  # type: ignore[attr-defined]
        given_VK = torch.tensor(tokens)[:, None]
        virtual = Virtual(keys={0: given_VK}) if source.has_cache else Virtual(given_VK)
        return Edits(virtual=virtual)

    def run(self, batch: Batch) -> torch.Tensor:
        given = batch.input
        for run in given.cached:
            given_V = run.virtual.keys[0][run.numbers]
            for slot, token in zip(run.place_V.tolist(), given_V, strict=True):
                self._cache[slot] = (int(token), 0)
        tokens = given.token_T.tolist()
        for run in given.embedded:
            assert run.virtual.embedding_VK is not None
            given_V = run.virtual.embedding_VK[run.numbers]
            for row, token in zip(run.place_V.tolist(), given_V, strict=True):
                tokens[row] = int(token)
        adapters = [0] * len(given.token_T)
        if given.segments is not None:
            for s, row in enumerate(given.segments.row_S):
                for t in range(given.segments.start_S[s], given.segments.end_S[s]):
                    adapters[t] = self._rows[int(row)]
        slots = given.attention.slot_T.tolist()
        for token, slot, adapter in zip(tokens, slots, adapters, strict=True):
            self._cache[slot] = (token, adapter)
        if given.states is not None:
            self._check_states(batch, given.states, list(zip(tokens, adapters, strict=True)))
        rows = [one_hot(self._seen(batch, index)) for index in given.sampled_R.tolist()]
        return torch.stack(rows) if rows else torch.empty(0, VOCAB)

    def _check_states(self, batch: Batch, states: StateBatch, seen: list[tuple[int, int]]) -> None:
        """Go on with checksums in their slots, and hold them against what is in the cache."""
        borders = batch.input.attention.query_start_B.tolist()
        assert len(set(states.write_B.tolist())) == len(states.write_B), "two write one slot"
        made = {}
        for number, (start, end) in enumerate(itertools.pairwise(borders)):
            kept = {each.length: each.slot for each in states.kept if each.request == number}
            total = self._states[int(states.read_B[number])]
            for row in range(start, end):
                total = continued(total, *seen[row])
                assert total % VOCAB == self._seen(batch, row), "a state of something else"
                if slot := kept.pop(row + 1 - start, None):
                    assert row > start or end == row + 1, "a token on the way is not told apart"
                    made[slot] = total
            assert not kept
            made[int(states.write_B[number])] = total
        assert BEGINNING not in made
        self._states |= made

    def read(self, batch: Batch) -> tuple[torch.Tensor, list[torch.Tensor]]:
        logits_RV = self.run(batch)
        read = []
        for part in batch.read:
            sums = [self._seen(batch, row) for row in range(part.rows.start, part.rows.stop)]
            if isinstance(part, PromptTokens):
                read.append(told_of_prompt(sums, part))
            else:
                read.append(torch.tensor(sums).float()[:, None])
        return logits_RV, read

    def _seen(self, batch: Batch, row: int) -> int:
        """Return the checksum of what a token of `batch` has before it in the cache."""
        attention = batch.input.attention
        number = int(np.searchsorted(attention.query_start_B, row, "right")) - 1
        slots = attention.context_slots(number).tolist()
        return checksum([self._cache[s] for s in slots[: int(batch.input.position_T[row]) + 1]])

    def start(self, batch: Batch, before: DeviceOutcome | None) -> DeviceOutcome:
        if before is not None:
            assert batch.input.carried_T is not None
            self.num_ahead += 1
            batch.input.token_T[:] = before.token_R[batch.input.carried_T]
        logits_RV, given = self.run(batch), batch.input
        token_R, adjusted_RV = likeliest(logits_RV), logits_RV
        is_finite_R = are_finite(logits_RV, token_R)
        if given.adjustments:
            adjusted_RV = adjust(logits_RV, given.token_T[given.sampled_R], given.adjustments)
            token_R = likeliest(adjusted_RV)
        if given.draws:
            token_R = draw(adjusted_RV, token_R, given.draws)
        reported = logprobs(logits_RV, token_R, MAX_LOGPROBS) if given.returns_logprobs else None
        return DeviceOutcome(Chosen(logits_RV, token_R, is_finite_R, reported), batch.requests)


class ManualClock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class SlowModel(FakeModel):
    """Takes its time, on a manual clock."""

    def __init__(self, clock: ManualClock, *, step_seconds: float, token_seconds: float) -> None:
        super().__init__()
        self._clock = clock
        self._step_seconds = step_seconds
        self._token_seconds = token_seconds

    def run(self, batch: Batch) -> torch.Tensor:
        self._clock.now += self._step_seconds + self._token_seconds * len(batch.input.token_T)
        return super().run(batch)


def checksum(context: list[tuple[int, int]]) -> int:
    """Return a token that depends on every (token, adapter) of `context` and on its order."""
    total = _BEGINNING
    for token, adapter in context:
        total = continued(total, token, adapter)
    return total % VOCAB


def continued(total: int, token: int, adapter: int) -> int:
    """Return what becomes of a checksum with one token more."""
    return (total * 31 + token * 5 + adapter * 11 + 3) % 1_000_003


def one_hot(token: int) -> torch.Tensor:
    logits = torch.zeros(VOCAB)
    logits[token] = 10.0
    return logits


def told_of_prompt(likeliest: list[int], part: PromptTokens) -> torch.Tensor:
    """Return what is told of the tokens of `part`, in whose places others were the likeliest."""
    count = part.request.sampling.num_prompt_logprobs
    assert count is not None
    if not likeliest:
        return torch.empty(0, 2 + 2 * count, dtype=torch.float64)
    logits_RV = torch.stack([one_hot(token) for token in likeliest])
    return prompt_logprobs(logits_RV, torch.tensor(part.tokens), count)


def virtual_tokens(adapter: int, count: int) -> list[int]:
    """Return what stands for the virtual tokens of an adapter."""
    return [VOCAB + 100 * adapter + number for number in range(count)]


def completion(
    prompt: list[int], adapter: int, max_tokens: int, *, eos: bool, active_from: int = 0,
    num_virtual: int = 0, sampling: Sampling | None = None,
) -> list[int]:  # fmt: skip
    """Return what the fake model makes of `prompt`, with the adapter from a position on.

    Its likeliest tokens, if `sampling` does not say how else they are chosen.
    """
    tokens: list[int] = []
    before = virtual_tokens(adapter, num_virtual)
    acting = 0 if num_virtual else adapter
    while len(tokens) < max_tokens:
        seen = enumerate([*before, *prompt, *tokens])
        token = checksum([(t, acting if i >= active_from else 0) for i, t in seen])
        if sampling:
            counts = counts_of(sampling, prompt, [EOS])
            request = Request(0, prompt, None, sampling, output=tokens, counts=counts)
            ((sampled,),) = sample(one_hot(token)[None], [request])
            token = sampled.token
        tokens.append(token)
        if eos and tokens[-1] == EOS:
            break
    return tokens


def fake_source(
    number: int, rank: int, invocation: tuple[int, ...] = (), *, num_virtual: int = 0,
    has_cache: bool = False, task: Task | None = None,
) -> AdapterSource:  # fmt: skip
    """Return an adapter that `FakeModel.load` knows; number 0 is the base."""
    return AdapterSource(
        f"sha256:{number:064x}", str(number), rank, 100 * rank, invocation=invocation,
        virtual_tokens=num_virtual, has_cache=has_cache, task=task,
    )  # fmt: skip


def fake_engine(
    *, num_blocks: int, rows: int, host_bytes: int = 1 << 20, max_running: int = 4,
    max_batch_tokens: int = 16, max_bypassed: int = 4, max_waiting: int = 1000,
    executor: Executor | None = None, model: FakeModel | None = None, max_stall: float = 0.0,
    clock: Clock = lambda: 0.0, runs_ahead: bool = False, eviction: str = "lru",
    max_tenant_share: float = 1.0, masks: MaskProvider | None = None,
    speculative_tokens: int = 0, num_states: int = 0,
) -> tuple[Engine, Scheduler, AdapterCache, FakeModel]:  # fmt: skip
    """Return an engine over a `FakeModel`, and its parts.

    With `num_states`, the model has recurrent layers.
    """
    model = model or FakeModel()
    cache = AdapterCache(
        device_rows=rows, row_size=RowSize(100), host_bytes=host_bytes, eviction=eviction,
        max_tenant_share=max_tenant_share,
    )  # fmt: skip
    ends = Ends(num_blocks * BLOCK_SIZE, frozenset({EOS}))
    scheduler = Scheduler(
        contexts=Contexts(
            BlockManager(num_blocks, BLOCK_SIZE),
            StateKeeper(num_states, BLOCK_SIZE, keeps=True) if num_states else None,
        ),
        adapters=cache,
        ends=ends,
        max_running=max_running,
        max_batch_tokens=max_batch_tokens,
        max_bypassed=max_bypassed,
    )
    pace = Pace(max_stall)
    engine = Engine(
        scheduler=scheduler,
        admission=Admission(
            scheduler=scheduler,
            pace=pace,
            memory=cache,
            context_length=num_blocks * BLOCK_SIZE,
            max_waiting=max_waiting,
            most_drafts=speculative_tokens,
        ),
        pace=pace,
        residents=Residents(
            cache=cache,
            loader=model,
            executor=HeldExecutor() if executor is None else executor,
            wake=lambda: None,
            clock=clock,
        ),
        image_encoder=ImageEncoder(None, None, lambda: None),
        runner=model,
        starter=model if runs_ahead else None,
        base=Base(BLOCK_SIZE, [EOS]),
        shares_cores=True,
        masks=masks,
        speculation=Speculation(speculative_tokens, ends),
        clock=clock,
    )
    return engine, scheduler, cache, model
