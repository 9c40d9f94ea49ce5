"""Steps that draw their tokens on the device, and run ahead of the host."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from loramux_server.engine import graphs
from loramux_server.kernels.gpu.draw import Blocks
from loramux_server.kernels.gpu.plan import Plan
from loramux_server.wire.adapter_source import AdapterSource
from tests.support.adapters import pack_source, save_adapter
from tests.support.engine import Harness
from tests.support.models import tiny_model

HOW: list[dict[str, Any]] = [
    {"temperature": 1.0},
    {"temperature": 0.0},
    {"temperature": 1.0, "top_p": 0.8},
    {"temperature": 1.5, "top_k": 30, "min_p": 0.05},
    {"temperature": 0.0, "repetition_penalty": 3.0, "num_logprobs": 2},
    {"temperature": 1.0, "frequency_penalty": 2.0, "logit_bias": {9: 5.0}, "min_tokens": 2},
]
pytestmark = pytest.mark.filterwarnings(
    "ignore::RuntimeWarning"  # numpy in the interpreter, of rows that stand for no token
)


@pytest.fixture(autouse=True)
def recorded_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "PLAIN_RUNS", 0)


@pytest.fixture
def model() -> PreTrainedModel:
    return tiny_model("llama", num_hidden_layers=1)


@pytest.fixture
def sources(model: PreTrainedModel, tmp_path: Path) -> list[AdapterSource]:
    """An adapter, and one whose logits overflow."""
    folder = save_adapter(
        model, tmp_path / "saved", seed=1, r=8, target_modules=["q_proj", "down_proj"]
    )
    sound = pack_source(folder, tmp_path / "sound")
    path = folder / "adapter_model.safetensors"
    save_file({name: weight * 1e25 for name, weight in load_file(path).items()}, path)
    return [sound, pack_source(folder, tmp_path / "broken")]


@pytest.mark.parametrize("blocks", [None, Blocks(v=64)], ids=["sorts", "searches"])
def test_the_tokens_are_those_that_the_host_draws(
    model: PreTrainedModel,
    sources: list[AdapterSource],
    device: torch.device,
    blocks: Blocks | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan = replace(Plan.of(device), draw=blocks)
    monkeypatch.setattr(Plan, "of", lambda _: plan)
    sound, broken = sources
    harness = Harness(model.to(device), kernels="triton", rows=64, num_blocks=40, max_running=8)
    found: list[list[list[int]]] = []
    for runs_ahead in (True, False):
        if not runs_ahead:
            harness.engine._execution._starter = None
        asked = [
            harness.submit(range(3, 5 + n), sound if n % 2 else None, max_tokens=3, seed=n, **how)
            for n, how in enumerate(HOW)
        ]
        lost = harness.submit([5, 6, 7], broken, max_tokens=3, temperature=1.0, top_p=0.9)
        num_ahead = 0
        while harness.engine.can_step:
            harness.step()
            num_ahead += harness.engine._execution.flight is not None
        assert bool(num_ahead) == runs_ahead
        assert harness.failures.keys() & {lost, *asked} == {lost}
        assert harness.failures[lost].reason == "ADAPTER_NOT_FINITE"
        found.append([harness.output(number) for number in asked])
        reported = [token.logprobs for token in harness.tokens[asked[4]]]
        assert all(logprobs and len(logprobs.top) == 2 for logprobs in reported)
    assert found[0] == found[1]
    assert {len(tokens) for tokens in found[0]} == {3}
