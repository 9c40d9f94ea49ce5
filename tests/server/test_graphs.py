"""Which steps are recorded; what a device does with a record is tested on one."""

from collections.abc import Callable, Hashable

import pytest
import torch

from loramux_server.engine.graphs import PLAIN_RUNS, Graphs


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


def test_nothing_is_recorded_any_more_where_a_model_asks_the_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    graphs, tried = graphs_of_a_gpu(monkeypatch, RuntimeError("injected"))
    for _ in range(PLAIN_RUNS + 1):
        assert graphs.run("large", lambda: 1) == 1
    for _ in range(PLAIN_RUNS + 1):
        assert graphs.run("small", lambda: 2) == 2
    assert tried == ["large"]
