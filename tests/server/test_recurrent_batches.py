"""What comes of a request on a base with recurrent layers, beside others and after them."""

from pathlib import Path

import pytest

from loramux_server.models.recurrent.parts import Part, Run, SingleTokens
from loramux_server.models.recurrent.states import LayerStateCache, LayerStates
from tests.support.recurrent_batches import RecurrentBatches


def test_answers_depend_on_nobody_else(tmp_path: Path) -> None:
    subject = RecurrentBatches("lfm2", tmp_path)
    assert list(subject.differences(12)) == []
    assert subject.num_shared_tokens > 0
    assert subject.num_preemptions > 0


def test_states_that_others_cannot_go_on_from_are_noticed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def keep_nothing(self: Part, states: LayerStates, given: LayerStateCache) -> None:
        if isinstance(self, SingleTokens):
            states.scatter(given, self.write_N)

    subject = RecurrentBatches("lfm2", tmp_path)
    for kind in (SingleTokens, Run):
        monkeypatch.setattr(kind, "end", keep_nothing)
    assert list(subject.differences(12)) != []
