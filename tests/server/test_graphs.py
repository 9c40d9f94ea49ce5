"""Which steps are recorded; what a device does with a record is tested on one."""

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from loramux_adapters.embedding import Pooling
from loramux_server.engine.batch import Batch
from loramux_server.engine.commands import Run, decode_command, encode
from loramux_server.engine.graphs import PLAIN_RUNS, Graphs
from loramux_server.engine.model_runner import ModelRunner
from loramux_server.engine.plan import Chunk
from loramux_server.engine.request import Request
from loramux_server.kernels.backend import DEFINITIONS
from loramux_server.models.decoder_model import prepare
from loramux_server.models.servable import UnservableModelError
from loramux_server.wire.sampling import Sampling
from tests.support.models import tiny_model


def graphs_of_a_gpu(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> tuple[Graphs[int], list[Hashable]]:
    """Return graphs as on a GPU where the form "large" cannot be recorded, and what was tried."""
    tried: list[Hashable] = []

    def record(self: Graphs[int], form: Hashable, step: Callable[[], int]) -> None:
        tried.append(form)
        if form == "large":
            raise error

        class Record:
            def replay(self) -> None:
                step()

        self._graphs[form] = Record(), step()  # type: ignore[assignment]

    monkeypatch.setattr(Graphs, "_record", record)
    return Graphs(torch.device("cuda")), tried


def test_a_form_for_which_there_is_no_memory_does_not_keep_others_from_being_recorded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    graphs, tried = graphs_of_a_gpu(monkeypatch, torch.OutOfMemoryError("injected"))
    for _ in range(PLAIN_RUNS + 2):
        assert graphs.run("large", lambda: 1) == 1
    for _ in range(PLAIN_RUNS + 2):
        assert graphs.run("small", lambda: 2) == 2
    assert tried == ["large", "small"]


def test_a_record_that_cannot_be_ended_for_lack_of_memory_is_one_form_too_large(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    error = RuntimeError("CUDA error: operation failed due to a previous error during capture")
    error.__context__ = torch.OutOfMemoryError("injected")
    for found in (error, RuntimeError("CUDA error: out of memory")):
        graphs, tried = graphs_of_a_gpu(monkeypatch, found)
        for form in ("large", "small"):
            for _ in range(PLAIN_RUNS + 2):
                assert graphs.run(form, lambda: 1) == 1
        assert tried == ["large", "small"]


def test_all_forms_are_recorded_on_one_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each stream that matmuls run on, torch keeps a workspace for good."""
    made: list[object] = []
    used: list[object] = []

    class Stream:
        def __init__(self) -> None:
            made.append(self)

        def wait_stream(self, other: object) -> None:
            """Nothing is launched."""

    class Record:
        pool = replay = lambda _: None

    @contextmanager
    def stream(one: object) -> Iterator[None]:
        used.append(one)
        yield

    @contextmanager
    def graph(_: Record, *, stream: object, **__: object) -> Iterator[None]:
        used.append(stream)
        yield

    own = Stream.__new__(Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: own)
    monkeypatch.setattr(torch.cuda, "set_stream", lambda _: None)
    for name, fake in (("Stream", Stream), ("stream", stream), ("graph", graph)):
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Record)
    graphs = Graphs[int](torch.device("cuda"))
    for form in range(3):
        for _ in range(PLAIN_RUNS + 2):
            assert graphs.run(form, lambda: 1) == 1
    assert used == made * 6  # each form runs once before it is recorded


def test_nothing_is_recorded_any_more_where_a_model_asks_the_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    graphs, tried = graphs_of_a_gpu(monkeypatch, RuntimeError("injected"))
    for _ in range(PLAIN_RUNS + 1):
        assert graphs.run("large", lambda: 1) == 1
    for _ in range(PLAIN_RUNS + 1):
        assert graphs.run("small", lambda: 2) == 2
    assert tried == ["large"]


def test_kernels_that_do_not_run_here_make_a_model_unservable() -> None:
    def norm(*_: object) -> torch.Tensor:
        raise RuntimeError("out of resource: shared memory\nand more")

    backend = replace(DEFINITIONS, name="broken", rms_norm=norm)
    with pytest.raises(UnservableModelError, match="out of resource") as reported:
        ModelRunner(prepare(tiny_model("llama")), backend, num_slots=64, adapter_memory=1 << 20)
    assert "and more" not in str(reported.value)


def test_a_step_that_is_read_is_in_no_graph_of_any_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backend = replace(DEFINITIONS, stage=lambda given, _: replace(given, graph_key="one for all"))
    runner = ModelRunner(
        prepare(tiny_model("llama")), backend, num_slots=64, adapter_memory=1 << 20
    )
    forms = []

    def run(_: object, form: Hashable, step: Callable[[], object]) -> object:
        forms.append(form)
        return step()

    monkeypatch.setattr(Graphs, "run", run)

    def batch_of(pooling: Pooling | None) -> Batch:
        request = Request(
            0, [5, 6, 7], None, Sampling(max_tokens=1, seed=0), pooling=pooling, blocks=[1]
        )
        return Batch.build([Chunk(request, 0, 3)], lambda _: pytest.fail("has no adapter"), 8)

    def follow(batch: Batch) -> None:
        command = decode_command(encode(Run.of(batch.input)))
        assert isinstance(command, Run)
        runner.run(Batch(command.input(lambda _: pytest.fail("has no adapter")), []))

    read, chosen = batch_of(Pooling.LAST), batch_of(None)
    runner.read(read)
    follow(read)
    assert not forms
    runner.run(chosen)
    follow(chosen)
    assert forms == ["one for all"] * 2
