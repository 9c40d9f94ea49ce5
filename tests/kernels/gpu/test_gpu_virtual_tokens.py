"""Virtual tokens with the kernels of a GPU, whose decode steps are of a few forms."""

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PrefixTuningConfig, PromptTuningConfig

from loramux_server.kernels.attention import AttentionBatch
from loramux_server.kernels.gpu.plan import Plan
from loramux_server.kernels.gpu.staged import Stager
from loramux_server.kernels.step_input import StepInput
from loramux_server.lora.virtual import Virtual, VirtualRun
from tests.kernels.gpu.test_gpu_engine import harness_of
from tests.parity.test_methods import save
from tests.support.adapters import expected, pack_source, with_adapter
from tests.support.models import tiny_model

pytestmark = pytest.mark.filterwarnings(
    "ignore::RuntimeWarning"  # numpy in the interpreter, of rows that stand for no token
)


def test_virtual_tokens_equal_peft_alone(device: torch.device, tmp_path: Path) -> None:
    model = tiny_model("llama")
    # A chunk of one token looks like a step of decode.
    harness = harness_of(model, device, rows=64, num_blocks=60, max_batch_tokens=3)
    wanted = []
    for seed, kind in enumerate((PromptTuningConfig, PrefixTuningConfig)):
        config = kind(task_type="CAUSAL_LM", num_virtual_tokens=4)
        saved = save(model, copy.deepcopy(config), tmp_path / str(seed), seed)
        source = pack_source(saved, tmp_path / f"{seed}.pkg")
        harness.submit([5, 6, 7], source, max_tokens=3)
        wanted.append(expected(with_adapter(model, saved), [5, 6, 7], 3).tokens)
    harness.run()
    assert [harness.output(request) for request in range(2)] == wanted


def test_a_step_that_puts_embeddings_in_their_place_is_like_no_other(device: torch.device) -> None:
    one, zero = np.array([1], np.int32), torch.zeros(1, dtype=torch.int64)
    attention = AttentionBatch(np.array([0, 1], np.int32), one, one[None], 4, zero)
    decode = StepInput(zero, zero, zero, attention, None)
    run = VirtualRun(Virtual(torch.ones(1, 3)), 0, zero)
    stager = Stager(device, Plan.of(device))
    assert stager.stage(decode)[0].graph_key is not None
    # A graph that was recorded does not call the module of embeddings.
    assert stager.stage(replace(decode, embedded=(run,)))[0].graph_key is None
    assert stager.stage(replace(decode, cached=(run,)))[0].graph_key is not None
