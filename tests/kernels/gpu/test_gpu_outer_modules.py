"""Steps that change what is before and behind the layers, with the kernels of a GPU.

What a device does with a record is done here by hand: a form's first step runs again in place of
each one that has the form, so that all that is new must lie where that one found it.
"""

import copy
import random
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

import pytest
import torch

from loramux_server.engine import graphs
from loramux_server.engine.graphs import Graphs
from loramux_server.kernels.gpu.capacity import StepCapacity
from tests.parity.test_ends import ends, saved_case, submit
from tests.parity.test_peft import Case, check
from tests.parity.test_saved import TOKENS, TOLERANCE
from tests.support.adapters import expected
from tests.support.engine import Harness
from tests.support.models import VOCAB, tiny_model

KINDS = ("both", "last norm", "tokens")
pytestmark = pytest.mark.filterwarnings(
    "ignore::RuntimeWarning"  # numpy in the interpreter, of rows that stand for no token
)


@pytest.fixture
def forms(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return the forms of what runs from a record, one after the other."""
    found: list[Hashable] = []
    records: dict[tuple[object, Hashable], Callable[[], object]] = {}
    monkeypatch.setattr(graphs, "PLAIN_RUNS", 0)
    run_on_device = Graphs.run

    def run(self: Graphs[Any], form: Hashable, step: Callable[[], Any]) -> Any:
        if form is None:
            return step()
        found.append(form)
        if device.type == "cuda":
            return run_on_device(self, form, step)
        return records.setdefault((self, form), step)()

    monkeypatch.setattr(Graphs, "run", run)
    return found


def is_of_layers(form: Any) -> bool:
    """Return whether a record is of the layers alone: nothing in it says how tokens are chosen."""
    assert isinstance(form[0], StepCapacity)
    return len(form) == 3


def test_layers_between_changed_ends_are_repeated_and_equal_peft(
    device: torch.device, tmp_path: Path, forms: list[Any]
) -> None:
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = False
    model = tiny_model("qwen3")
    rng = random.Random(0)
    cases = []
    for seed, name in enumerate(KINDS):
        prompt = [rng.choice([*TOKENS, rng.randrange(3, VOCAB)]) for _ in range(3 + seed)]
        cases.append(saved_case(model, ends(model)[name], tmp_path / name, seed, prompt))
    cases.append(Case(prompt, None, expected(model, prompt, 4)))
    harness = Harness(
        copy.deepcopy(model).to(device), kernels="triton", rows=1024, num_blocks=100
    )  # fmt: skip
    for case in cases:
        submit(harness, case)
    harness.run()
    assert not harness.failures
    for request_id, case in enumerate(cases):
        check(harness, request_id, case, TOLERANCE)
    # A prompt of all, then three tokens each, the last of them together.
    assert len(forms) == sum(report.batch is not None for report in harness.reports)
    of_layers = [form for form in forms if is_of_layers(form)]
    assert len(of_layers) > 2
    assert len(set(of_layers)) < len(of_layers)  # one of them was repeated
