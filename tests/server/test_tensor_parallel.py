"""Two processes that hold a model together give what one process gives."""

import resource
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from peft import LoraConfig, PeftConfig, PrefixTuningConfig, PromptTuningConfig

from loramux_adapters.head import Task
from loramux_server.engine.model_part import load_model, load_whole
from loramux_server.engine.team import Team
from loramux_server.lora.mix import mixed
from loramux_server.lora.shard import Shard
from loramux_server.models.loading import load_base_model
from loramux_server.models.servable import UnservableModelError
from loramux_server.wire.adapter_source import AdapterSource, Combination
from loramux_server.wire.engine_config import EngineConfig
from tests.parity.test_methods import save
from tests.support.adapters import pack_source, save_adapter, save_tuned
from tests.support.classifiers import classifier, expected_logits
from tests.support.engine import Harness
from tests.support.models import tiny_model
from tests.support.polling import is_alive

TOLERANCE = 1e-4
ADAPTERS: list[dict[str, Any]] = [
    {"r": 3, "target_modules": ["q_proj", "v_proj"]},
    {"r": 8, "target_modules": ["o_proj", "down_proj"]},
    {"r": 13, "target_modules": "all-linear", "use_rslora": True},
    {"r": 1, "target_modules": ["down_proj"]},
    {"r": 16, "target_modules": ["gate_proj", "k_proj", "o_proj"]},
]
PROMPTS = [[5, 6, 7], list(range(3, 40)), [9], list(range(20, 31)), [50, 4, 50]]
ADAPTER_MEMORY = 76_000
"""Has room for one of the larger adapters, and in half of the model for two."""


@dataclass
class Setup:
    """An engine of one process, one of two, and the adapters that both are given."""

    alone: Harness
    together: Harness
    sources: list[AdapterSource]
    follower: int
    """Process id."""

    def submit(self, prompt: list[int], source: AdapterSource | None) -> list[int]:
        return [
            harness.submit(prompt, source, max_tokens=6, num_logprobs=5)
            for harness in (self.alone, self.together)
        ]


@pytest.fixture(scope="module", params=[("llama-bias", "cpu"), ("qwen3", "torch")], ids=str)
def setup(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Setup]:
    name, kernels = request.param
    folder = tmp_path_factory.mktemp("team")
    tiny_model(name).save_pretrained(str(folder / "model"))
    sources = []
    for seed, fields in enumerate(ADAPTERS):
        saved = save_adapter(tiny_model(name), folder / str(seed), seed=seed, **fields)
        sources.append(pack_source(saved, folder / f"{seed}.package"))
    settings = {
        "kernels": kernels, "adapter_memory": ADAPTER_MEMORY, "max_batch_tokens": 24,
        "max_running": 4,
    }  # fmt: skip
    config = EngineConfig(
        model=str(folder / "model"), tensor_parallel=2, threads=2, device="cpu", block_size=4,
        **settings,
    )  # fmt: skip
    with Team(config) as team:
        together = Harness(load_model(config, team), team=team, **settings)
        alone = Harness(load_base_model(config.model, device="cpu"), **settings)
        yield Setup(alone, together, sources, *team.pids)


def test_a_mixed_batch_gives_the_same(setup: Setup) -> None:
    pairs = []
    for turn in range(3):  # so that adapters go and come again
        for index, prompt in enumerate(PROMPTS):
            source = setup.sources[(index + turn) % len(ADAPTERS)]
            pairs += [setup.submit(prompt, source), setup.submit(prompt, None)]
        for _ in range(10):
            setup.alone.step()
            setup.together.step()
    setup.alone.run()
    setup.together.run()
    for alone, together in pairs:
        assert setup.together.output(together) == setup.alone.output(alone)
        for ours, theirs in zip(
            setup.together.tokens[together], setup.alone.tokens[alone], strict=True
        ):
            assert ours.logprobs and theirs.logprobs
            assert dict(ours.logprobs.top) == pytest.approx(
                dict(theirs.logprobs.top), abs=TOLERANCE
            )
    arrivals = Counter(
        digest
        for report in setup.together.reports
        for digest, tier in report.tiers.items()
        if tier == "device"
    )
    assert max(arrivals.values()) > 1
    assert max(r.batch.adapters for r in setup.together.reports if r.batch) > 1


def test_prompts_are_as_likely(setup: Setup) -> None:
    pairs = []
    for index, prompt in enumerate(PROMPTS):
        for source in (None, setup.sources[index]):
            pairs.append([
                harness.submit(prompt, source, max_tokens=index % 2, num_prompt_logprobs=3)
                for harness in (setup.alone, setup.together)
            ])  # fmt: skip
    setup.alone.run()
    setup.together.run()
    for alone, together in pairs:
        ours = setup.together.prompt_logprobs(together).reshape(-1, 8)
        theirs = setup.alone.prompt_logprobs(alone).reshape(-1, 8)
        torch.testing.assert_close(ours[:, 1:5], theirs[:, 1:5], rtol=0, atol=TOLERANCE)
    reported = sum(len(setup.together.prompt_logprobs(together)) for _, together in pairs)
    assert reported == 8 * 2 * sum(len(prompt) - 1 for prompt in PROMPTS)


def test_mixes_and_adapters_that_begin_later_give_the_same(setup: Setup) -> None:
    small, other = setup.sources[0], setup.sources[3]
    mix = mixed([small, other], [0.5, -1.5], Combination.CAT)
    later = msgspec.structs.replace(setup.sources[1], invocation=(30,))
    asked = [(p, s) for p in PROMPTS for s in (mix, mixed([small], [2.5], Combination.CAT), later)]
    pairs = [setup.submit(prompt, source) for prompt, source in asked]
    setup.alone.run()
    setup.together.run()
    for alone, together in pairs:
        assert setup.together.output(together) == setup.alone.output(alone)
    assert len({tuple(setup.alone.output(alone)) for alone, _ in pairs}) > len(PROMPTS)


def test_each_process_takes_less_and_the_frontend_learns_of_whole_layers(setup: Setup) -> None:
    alone, together = setup.alone.info, setup.together.info
    assert together.layers == alone.layers
    assert together.fingerprint == alone.fingerprint
    assert together.num_parameters == alone.num_parameters
    assert together.adapter_rows > alone.adapter_rows
    bytes_together, bytes_alone = together.sizes.kv_memory, alone.sizes.kv_memory
    assert bytes_together / together.num_blocks == bytes_alone / alone.num_blocks / 2


def only_in_host_memory(setup: Setup, folder: Path) -> AdapterSource:
    """Return an adapter that was on the device: followers have to read its file again."""
    model, together = tiny_model("llama"), setup.together
    if "Qwen3" in together.info.architecture:
        model = tiny_model("qwen3")
    saved = save_adapter(model, folder / "a", seed=9, r=2, target_modules=["o_proj"])
    source = pack_source(saved, folder / "a.package")
    for each in (source, *setup.sources):
        request = together.submit([5, 6], each)
        together.run()
        assert len(together.output(request)) == 8
    return source


def test_an_adapter_that_only_the_leader_can_read_ends_its_requests_alone(
    setup: Setup, tmp_path: Path
) -> None:
    source, together = only_in_host_memory(setup, tmp_path), setup.together
    Path(source.path).unlink()
    request, base = together.submit([5, 6], source), together.submit([5, 6], None)
    together.run()
    assert len(together.output(base)) == 8
    assert together.failures[request].reason == "ADAPTER_DAMAGED"


@pytest.mark.skipif(sys.platform != "linux", reason="sets limits of another process")
@pytest.mark.parametrize(("limit", "most", "reason"), [
    ("AS", 64 << 30, "ENGINE_OUT_OF_MEMORY"), ("NOFILE", 0, "STORE_UNAVAILABLE"),
])  # fmt: skip
def test_a_follower_that_runs_out_of_something_fails_only_that_load(
    setup: Setup, tmp_path: Path, limit: str, most: int, reason: str
) -> None:
    source, together = only_in_host_memory(setup, tmp_path), setup.together
    path, kind = Path(source.path), getattr(resource, f"RLIMIT_{limit}")
    packed, before = path.read_bytes(), resource.prlimit(setup.follower, kind)
    with path.open("r+b") as file:
        file.truncate(1 << 40)  # larger than the memory that a follower may have
    resource.prlimit(setup.follower, kind, (most, before[1]))
    try:
        request, base = together.submit([5, 6], source), together.submit([5, 6], None)
        together.run()
    finally:
        resource.prlimit(setup.follower, kind, before)
    assert len(together.output(base)) == 8
    assert together.failures[request].reason == reason
    path.write_bytes(packed)
    again = together.submit([5, 6], source)
    together.run()
    assert len(together.output(again)) == 8


@pytest.mark.parametrize("task", Task)
def test_texts_are_classified_the_same(setup: Setup, tmp_path: Path, task: Task) -> None:
    base = tiny_model("qwen3" if "Qwen3" in setup.together.info.architecture else "llama-bias")
    config = LoraConfig(task_type=str(task), r=4, target_modules=["q_proj", "down_proj"])
    model = save_tuned(classifier(base, task, 3), config, tmp_path / "a", seed=1)
    source = pack_source(tmp_path / "a", tmp_path / "a.package")
    prompts = [[5], list(range(3, 40))]
    asked = [setup.submit(prompt, source) for prompt in prompts]
    setup.submit([5, 6], setup.sources[0])
    setup.alone.run()
    setup.together.run()
    for prompt, (alone, together) in zip(prompts, asked, strict=True):
        wanted = expected_logits(model, prompt)
        wanted = wanted.reshape(-1, wanted.shape[-1])
        for harness, request_id in ((setup.alone, alone), (setup.together, together)):
            found = harness.logits(request_id, wanted.shape[-1])
            torch.testing.assert_close(found, wanted, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("kind", [PromptTuningConfig, PrefixTuningConfig])
def test_an_adapter_of_more_than_low_rank_changes_ends_its_requests_alone(
    setup: Setup, tmp_path: Path, kind: type[PeftConfig]
) -> None:
    model, together = tiny_model("llama"), setup.together
    config = kind(task_type="CAUSAL_LM", num_virtual_tokens=3)
    source = pack_source(save(model, config, tmp_path / "a", seed=1), tmp_path / "a.package")
    request, base = together.submit([5, 6], source), together.submit([5, 6], None)
    together.run()
    assert together.failures[request].reason == "UNSUPPORTED_ADAPTER_FEATURE"
    assert len(together.output(base)) == 8


def test_a_follower_that_cannot_load_the_model_says_why(tmp_path: Path) -> None:
    config = EngineConfig(model=str(tmp_path / "absent"), tensor_parallel=2, device="cpu")
    with (
        Team(config) as team,
        pytest.raises(UnservableModelError, match=r"cannot load a base model from .*absent"),
        team.loading(),
    ):
        pass
    assert not any(is_alive(pid) for pid in team.pids)


@pytest.mark.parametrize(
    ("device", "reason"),
    [
        ("cuda:0", "device is 'cuda:0', but 2 processes take one GPU each"),
        ("cuda", "tensor_parallel is 2, but torch sees 1 GPUs"),
        ("auto", "tensor_parallel is 2, but torch sees 1 GPUs"),
    ],
)
def test_too_few_gpus_are_refused(
    device: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    config = EngineConfig(model="any", tensor_parallel=2, device=device)
    with pytest.raises(UnservableModelError, match=reason):
        load_whole(config, Shard(0, 2))
