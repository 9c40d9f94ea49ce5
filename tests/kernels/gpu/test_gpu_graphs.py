"""What a device alone can show: records, a second stream, launches that overlap, pinned memory."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from loramux_server.engine import graphs
from loramux_server.engine.graphs import Graphs
from loramux_server.kernels.gpu import dependent_launch
from loramux_server.kernels.gpu.plan import Plan
from loramux_server.kernels.gpu.side_stream import SideStream
from loramux_server.lora.buffer_pool import PinnedMemory
from tests.kernels.gpu.dtypes import needs_gpu
from tests.kernels.gpu.test_gpu_engine import logprobs
from tests.support.adapters import pack_source, save_adapter
from tests.support.engine import Harness
from tests.support.models import tiny_model

pytestmark = [pytest.mark.gpu, needs_gpu]


@pytest.fixture(autouse=True)
def recorded_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "PLAIN_RUNS", 0)


@pytest.fixture
def weight(device: torch.device) -> torch.Tensor:
    return torch.eye(512, dtype=torch.bfloat16, device=device)


def test_many_records_take_no_more_workspace_than_a_few(
    weight: torch.Tensor, device: torch.device
) -> None:
    recorded = Graphs[torch.Tensor](device)

    def run(size: int) -> None:
        x = torch.ones(size, 512, dtype=torch.bfloat16, device=device)
        assert recorded.run(size, lambda: x @ weight).sum().item() == 512 * size

    for size in range(1, 4):
        run(size)
    before = torch.cuda.memory_allocated(device)
    for size in range(4, 44):
        run(size)
    # On each stream on which a matmul runs torch keeps a workspace: of 32 MiB on Hopper.
    assert torch.cuda.memory_allocated(device) - before < 8 << 20


@contextmanager
def left_out(side: SideStream) -> Iterator[None]:
    """Launch on the other stream as a layer does, which lets it come back whatever happens."""
    try:
        with side.fork():
            yield
    finally:
        side.join()


@pytest.mark.parametrize("error", ["asks", "lacks memory"])
def test_a_record_that_fails_leaves_the_device_as_it_was(
    error: str, weight: torch.Tensor, device: torch.device
) -> None:
    side, recorded = SideStream(device), Graphs[torch.Tensor](device)
    x = torch.ones(3, 512, dtype=torch.bfloat16, device=device)

    def fails() -> torch.Tensor:
        with left_out(side):
            y = x @ weight
            if torch.cuda.is_current_stream_capturing():
                if error == "asks":
                    y.sum().item()
                raise torch.OutOfMemoryError("injected")
        return y

    assert recorded.run("fails", fails).sum().item() == 3 * 512
    if error == "asks":  # this model is recorded no more, but another one may be
        recorded = Graphs[torch.Tensor](device)
    calls = []

    def step() -> torch.Tensor:
        calls.append(1)
        with left_out(side):
            y = x @ weight
        return y + 1

    for number in range(4):
        x.fill_(number)
        assert recorded.run("works", step).sum().item() == 3 * 512 * (number + 1)
    assert len(calls) == 2  # once before it was recorded, and once for that
    assert recorded.run("fails", fails).sum().item() == 3 * 512 * 3


def test_launches_that_overlap_give_the_same_bits(
    device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither of what the one before still writes, nor of what is computed on another stream."""
    model = tiny_model(
        "llama", hidden_size=1024, intermediate_size=2048, num_hidden_layers=6,
        num_attention_heads=8, num_key_value_heads=2, head_dim=128,
    ).to(torch.bfloat16)  # fmt: skip
    sources: list[Any] = [None]
    for seed, rank in enumerate((8, 40, 16)):
        folder = save_adapter(
            model, tmp_path / str(seed), seed=seed, r=rank, target_modules="all-linear"
        )
        sources.append(pack_source(folder, tmp_path / f"{seed}.package"))
    of: Any = Plan.of
    for spare_rows in (1 << 20, -1):  # A rows in the matmul, and in a kernel beside it
        plan = replace(of(device), max_spare_rows=spare_rows)
        monkeypatch.setattr(Plan, "of", lambda _, plan=plan: plan)
        with monkeypatch.context() as patch:
            patch.setattr(dependent_launch, "_has_dependent_launch", lambda _: False)
            patch.setattr(SideStream, "fork", lambda _: nullcontext())
            patch.setattr(SideStream, "join", lambda _: None)
            wanted = _told(model, device, sources)
        for _ in range(3):
            assert torch.equal(_told(model, device, sources), wanted)


def _told(model: PreTrainedModel, device: torch.device, sources: Sequence[Any]) -> torch.Tensor:
    harness = Harness(
        copy.deepcopy(model).to(device), kernels="triton", rows=256, prefix_cache=False
    )
    for _ in range(4):  # the first of them records what the others repeat
        reported = logprobs(harness, [*sources, *sources])
    return reported


def test_pinned_memory_is_copied_from_and_let_go_of(device: torch.device) -> None:
    memory = PinnedMemory(device)
    room = memory.make(8 << 20)
    held = torch.from_numpy(room)
    assert held.is_pinned()
    held[:] = torch.arange(held.numel()) % 251
    torch.cuda._sleep(100_000_000)
    there = held.to(device, non_blocking=True)
    assert not torch.cuda.current_stream().query()  # the host has not waited
    assert torch.equal(there.cpu(), held)
    memory.free(room)
    assert not held.is_pinned()
    torch.ones(1, device=device).add_(1)  # and no error is left behind
