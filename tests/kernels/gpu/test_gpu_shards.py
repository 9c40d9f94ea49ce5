"""Parts of a model with the kernels of a GPU, in Triton's interpreter where there is none."""

from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from loramux_server.engine.graphs import Graphs
from loramux_server.lora.shard import Shard
from loramux_server.models.decoder_model import prepare
from loramux_server.models.sharded import shard_model
from loramux_server.wire.adapter_source import AdapterSource
from tests.support.adapters import pack_source, save_adapter
from tests.support.engine import Harness
from tests.support.models import tiny_model
from tests.support.shards import Sums, side_by_side

pytestmark = pytest.mark.filterwarnings(
    "ignore::RuntimeWarning"  # numpy in the interpreter, of rows that stand for no token
)


def biased_model() -> PreTrainedModel:
    """A model with norms of heads, and biases on both sides of attention."""
    return tiny_model("qwen3", attention_bias=True)


def completions(
    kernels: str, device: torch.device, sources: list[AdapterSource | None], shard: Shard
) -> dict[int, list[tuple[int, float]]]:
    """Return (token, logprob) of everything that an engine makes with one shard of a model."""
    model = prepare(biased_model().to(device))
    if shard.count > 1:
        model = shard_model(model, shard)
    harness = Harness(model, kernels=kernels, rows=64)
    for index, source in enumerate(sources):
        harness.submit(range(3, 9 + 2 * index), source, max_tokens=3, num_logprobs=1)
    harness.run()
    return {
        request: [(token.token, token.logprobs.chosen) for token in tokens if token.logprobs]
        for request, tokens in harness.tokens.items()
    }


def test_two_parts_give_what_the_whole_gives(
    device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No two threads of a process record at once, nor does what waits for another thread.
    monkeypatch.setattr(Graphs, "run", lambda self, form, step: step())
    sources: list[AdapterSource | None] = [None]
    for seed, targets in enumerate(("all-linear", ["o_proj", "down_proj"], ["k_proj", "up_proj"])):
        saved = save_adapter(
            biased_model(), tmp_path / str(seed), seed=seed, r=5 + 4 * seed,
            target_modules=targets,
        )  # fmt: skip
        sources.append(pack_source(saved, tmp_path / f"{seed}.package"))
    whole = completions("torch", device, sources, Shard())
    sums = Sums(2)
    parts = side_by_side(
        [partial(completions, "triton", device, sources, Shard(i, 2)) for i in (0, 1)], sums
    )
    for part in parts:
        for request, expected in whole.items():
            assert [token for token, _ in part[request]] == [token for token, _ in expected]
            for (_, ours), (_, theirs) in zip(part[request], expected, strict=True):
                assert ours == pytest.approx(theirs, abs=1e-4)
