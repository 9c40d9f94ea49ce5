"""What a step does with adapters, counted and not timed.

Their weights are multiplied where they lie, and a batch of the base leaves them alone.
"""

import tracemalloc
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from loramux_server.engine import model_runner, operations
from loramux_server.kernels.backend import Backend, choose_backend
from loramux_server.wire.adapter_source import AdapterSource
from tests.support.adapters import pack_source, save_adapter
from tests.support.engine import Harness
from tests.support.models import tiny_model

RANK = 256
SMALLEST_GROUP = RANK * (32 + 32) * 4
"""Bytes of the adapter's weights in the group of layers where it has the fewest."""
PROMPTS = [list(range(3 + i, 23 + i)) for i in range(4)]
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass
class Slab:
    """The memory of all adapters, as the low-rank matmul is given it."""

    num_calls: int = 0
    addresses: set[int] = field(default_factory=set)

    def watched(self, chosen: Backend) -> Backend:
        """Return `chosen` with a low-rank matmul that is counted."""

        def add_lora(*arguments: Any) -> None:
            self.num_calls += 1
            self.addresses |= {rows.untyped_storage().data_ptr() for rows in arguments[2:4]}
            chosen.add_lora(*arguments)

        return replace(chosen, add_lora=add_lora)  # type: ignore[arg-type]


class Reads(TorchDispatchMode):
    """Counts the operations that read memory of the slab; views of it are free."""

    def __init__(self, slab: Slab) -> None:
        super().__init__()
        self._slab = slab
        self.num_operations = 0
        self.of_slab: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.num_operations += 1
        is_view = address(result) in self._slab.addresses
        if not is_view and any(address(v) in self._slab.addresses for v in tree_leaves(args)):
            self.of_slab[func.overloadpacket.__name__] += 1
        return result


def address(value: Any) -> int | None:
    """Return where the memory of a tensor begins; None for anything else."""
    if isinstance(value, torch.Tensor) and value.layout is torch.strided:
        return value.untyped_storage().data_ptr()
    return None


@dataclass(frozen=True)
class Setup:
    """An engine in which an adapter is resident."""

    harness: Harness
    source: AdapterSource
    slab: Slab

    def submit(self, *adapters: AdapterSource | None) -> None:
        """Give the engine a prompt for each of `adapters`."""
        for prompt, adapter in zip(PROMPTS, adapters, strict=False):
            self.harness.submit(prompt, adapter, max_tokens=4)


@pytest.fixture(params=["torch", "cpu"])
def setup(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setup:
    slab = Slab()
    monkeypatch.setattr(
        operations,
        "choose_backend",
        lambda *which, **how: slab.watched(choose_backend(*which, **how)),
    )
    model = tiny_model("llama")
    folder = save_adapter(model, tmp_path / "a", seed=1, r=RANK, target_modules=TARGETS)
    harness = Harness(
        model, kernels=request.param, rows=2 * RANK, max_running=8, prefix_cache=False
    )
    setup = Setup(harness, pack_source(folder, tmp_path / "a.package"), slab)
    setup.submit(*[setup.source] * 4)  # it is loaded, and what is kept between steps is made
    harness.run()
    assert slab.num_calls
    return setup


def test_weights_are_multiplied_where_they_lie(setup: Setup) -> None:
    setup.submit(*[setup.source] * 3, None)
    with Reads(setup.slab) as reads:
        setup.harness.run()  # prompts, then decode
    assert reads.num_operations
    # The compiled form needs none of torch's operations.
    assert set(reads.of_slab) <= {"matmul", "addmm_"}


def test_a_step_needs_no_memory_for_weights(setup: Setup) -> None:
    peaks = []
    for adapter in (None, setup.source):
        setup.submit(*[adapter] * 4)
        peaks.append([peak_bytes(setup.harness) for _ in range(4)])
    for base, adapted in zip(*peaks, strict=True):
        assert adapted - base < SMALLEST_GROUP


def peak_bytes(harness: Harness) -> int:
    """Take a step and return the most that Python and numpy had allocated for it."""
    tracemalloc.start()
    try:
        harness.step()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_batch_of_the_base_leaves_adapters_alone(setup: Setup) -> None:
    before = setup.slab.num_calls
    setup.submit(None, None)
    with Reads(setup.slab) as reads:
        setup.harness.run()
    assert reads.num_operations
    assert not reads.of_slab
    assert setup.slab.num_calls == before


def test_the_likeliest_tokens_are_looked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the sampler, where the host waits for each step anyway."""
    monkeypatch.setattr(model_runner, "likeliest", None)
    harness = Harness(tiny_model("llama"))
    harness.submit([5, 6, 7], max_tokens=3)
    harness.run()
    assert len(harness.output(0)) == 3
