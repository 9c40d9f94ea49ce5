"""Bases some of whose layers are recurrent: a state for each request, beside keys and values."""

import copy
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from msgspec.structs import asdict

from loramux_server.kernels.states import KeptState, StateBatch
from loramux_server.models.decoder_model import prepare
from loramux_server.models.recurrent import delta_rule
from loramux_server.models.recurrent.delta_rule import DeltaRule
from loramux_server.models.recurrent.in_place import InPlaceUpdate
from loramux_server.models.recurrent.parts import Run, SingleTokens, in_steps, parts_of
from loramux_server.models.recurrent.state_space import StateSpace
from loramux_server.models.recurrent.states import LayerStateCache, LayerStates
from loramux_server.models.servable import UnservableModelError
from tests.support.adapters import expected, pack_source, save_adapter, with_adapter
from tests.support.engine import Harness
from tests.support.models import RECURRENT, VOCAB, tiny_model

CPU = torch.device("cpu")


def prompt_of(length: int, seed: int = 0) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(3, VOCAB) for _ in range(length)]


def check(harness: Harness, request_id: int, model: torch.nn.Module, prompt: list[int]) -> None:
    """Hold an answer against what `model` alone writes."""
    alone = expected(model, prompt, len(harness.output(request_id)))
    assert harness.output(request_id) == alone.tokens
    for token, logprob_V in zip(harness.tokens[request_id], alone.logprobs, strict=True):
        assert token.logprobs is not None
        ours = torch.tensor([logprob for _, logprob in sorted(token.logprobs.top)])
        torch.testing.assert_close(ours, logprob_V, rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("architecture", ["qwen3.5", "lfm2", "granite-hybrid", "kimi-linear"])
def test_rounding_is_no_reason_to_refuse(architecture: str, dtype: torch.dtype) -> None:
    assert prepare(tiny_model(architecture).to(dtype)).dtype == dtype


def test_layers_are_found_by_what_they_bring_to_the_cache() -> None:
    base = prepare(tiny_model("nemotron-h"))
    assert list(base.recurrent.states) == ["model.layers.0.mixer"]
    assert set(base.attention.shapes) == {1}  # and the third keeps nothing
    both = prepare(tiny_model("falcon-h1"))
    assert both.recurrent.numbers == set(both.attention.shapes) == {0, 1}
    assert not prepare(tiny_model("llama")).recurrent.states


@pytest.mark.parametrize(
    ("architecture", "kind"),
    [
        ("qwen3.5", DeltaRule), ("kimi-linear", DeltaRule), ("granite-hybrid", StateSpace),
        ("mamba2", StateSpace), ("lfm2", type(None)),
    ],
)  # fmt: skip
def test_it_is_found_out_whose_states_change_in_their_slots(
    architecture: str, kind: type[InPlaceUpdate]
) -> None:
    found = prepare(tiny_model(architecture)).recurrent.states.values()
    assert all(type(each._in_place) is kind for each in found)


def test_a_rule_that_computes_something_else_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delta_rule, "_EPSILON", 0.5)
    (found,) = prepare(tiny_model("qwen3.5")).recurrent.states.values()
    assert found._in_place is None


@pytest.mark.parametrize("architecture", RECURRENT)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_it_is_found_out_who_takes_a_text_in_pieces(architecture: str, dtype: torch.dtype) -> None:
    base = prepare(tiny_model(architecture).to(dtype))
    assert base.recurrent.supports_continuation == (architecture != "jamba")


@pytest.mark.parametrize("architecture", ["qwen3.5", "lfm2", "granite-hybrid", "falcon-h1"])
def test_who_begins_alike_goes_on_from_where_others_were(architecture: str) -> None:
    model = tiny_model(architecture)
    harness = Harness(copy.deepcopy(model), max_batch_tokens=24, max_running=4)
    system = prompt_of(21)
    prompts = [system + prompt_of(9 + n, seed=n) for n in (1, 2, 3)]
    shared = []
    for prompt in [*prompts, prompts[0]]:
        request_id = harness.submit(prompt, num_logprobs=VOCAB)
        before = harness.engine._scheduler.num_shared_tokens
        harness.run()
        shared.append(harness.engine._scheduler.num_shared_tokens - before)
        check(harness, request_id, model, prompt)
    # The first has nothing before it; where the second parts from it is found out by it.
    assert shared == [0, 0, 20, 28]


def test_a_conversation_goes_on_from_its_answer() -> None:
    model = tiny_model("qwen3.5")
    harness = Harness(copy.deepcopy(model))
    prompt = prompt_of(5)
    first = harness.submit(prompt, max_tokens=140, num_logprobs=VOCAB)
    harness.run()
    check(harness, first, model, prompt)
    prompt = [*prompt, *harness.output(first), *prompt_of(6, seed=1)]
    second = harness.submit(prompt, num_logprobs=VOCAB)
    harness.run()
    assert harness.engine._scheduler.num_shared_tokens == 128
    check(harness, second, model, prompt)


def test_adapters_have_states_of_their_own(tmp_path: Path) -> None:
    model = tiny_model("qwen3.5")
    targets = ["in_proj_qkv", "out_proj", "q_proj", "down_proj"]
    saved = [
        save_adapter(model, tmp_path / str(seed), seed=seed, r=4, target_modules=targets)
        for seed in (1, 2)
    ]
    variants = [(model, None)] + [
        (with_adapter(model, folder), pack_source(folder, folder / "a.pkg")) for folder in saved
    ]
    harness = Harness(copy.deepcopy(model), max_running=3)
    prompt = prompt_of(30)
    for _ in range(2):
        asked = [
            (harness.submit(prompt, source, num_logprobs=VOCAB), alone)
            for alone, source in variants
        ]
        harness.run()
        for request_id, alone in asked:
            check(harness, request_id, alone, prompt)
    assert harness.engine._scheduler.num_shared_tokens == 3 * 28


def test_without_a_prefix_cache_nothing_is_kept() -> None:
    harness = Harness(tiny_model("qwen3.5"), prefix_cache=False)
    for _ in range(2):
        harness.submit(prompt_of(30))
        harness.run()
    assert harness.engine._scheduler.num_shared_tokens == 0


def test_layers_that_cannot_go_on_take_each_token_of_a_next_chunk_alone() -> None:
    model = tiny_model("jamba")
    harness = Harness(copy.deepcopy(model), max_batch_tokens=8)
    prompts = [prompt_of(19 + n, seed=n) for n in range(3)]
    asked = [harness.submit(prompt, num_logprobs=VOCAB) for prompt in prompts]
    harness.run()
    for request_id, prompt in zip(asked, prompts, strict=True):
        check(harness, request_id, model, prompt)


def test_a_state_that_is_of_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SingleTokens, "end", lambda *_: None)
    with pytest.raises(UnservableModelError, match="than in its own forward"):
        prepare(tiny_model("lfm2"))


def test_what_cannot_be_kept_on_the_way_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def begin_with_a_copy(self: Run, states: LayerStates) -> LayerStateCache:
        states.copy(self.read, self.write)
        slot = torch.tensor([self.write])
        return states.gathered(slot, slot)  # before the part in front of it has changed it

    def put_back(self: Run, states: LayerStates, given: LayerStateCache) -> None:
        states.scatter(given, torch.tensor([self.write]))

    monkeypatch.setattr(Run, "begin", begin_with_a_copy)
    monkeypatch.setattr(Run, "end", put_back)
    with pytest.raises(UnservableModelError, match="than in its own forward"):
        prepare(tiny_model("lfm2"))


def test_what_is_inside_of_a_recurrent_layer_is_no_adapters_but_for_layers() -> None:
    base = prepare(tiny_model("qwen3.5"))
    inside = {name for name in base.replaceable.shapes if ".linear_attn." in name}
    assert inside == {
        f"model.layers.0.linear_attn.{layer}.weight"
        for layer in ("in_proj_qkv", "in_proj_z", "in_proj_a", "in_proj_b", "out_proj")
    }
    assert inside < {f"{name}.weight" for name in base.places}


def test_more_run_than_there_are_states_for() -> None:
    model = tiny_model("qwen3.5")
    base = prepare(copy.deepcopy(model))
    harness = Harness(base, kv_memory=12 * base.recurrent.slot_bytes, max_running=16)
    prompts = [prompt_of(9 + n, seed=n) for n in range(12)]
    asked = [harness.submit(prompt, num_logprobs=VOCAB) for prompt in prompts]
    harness.run()
    assert harness.info.max_running == harness.info.num_states == 5
    assert max(report.stats.running for report in harness.reports) == 5
    assert max(report.stats.used_states for report in harness.reports) == 5
    assert harness.reports[-1].stats.used_states == 0
    for request_id, prompt in zip(asked, prompts, strict=True):
        check(harness, request_id, model, prompt)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"max_context": 16},  # of which states take more than blocks
        {"kv_memory": 200_003, "max_running": 16},
        {"kv_memory": 123_457, "max_running": 3},
    ],
)
@pytest.mark.parametrize("architecture", ["qwen3.5", "llama"])
def test_an_engine_after_another_has_as_much_room(
    architecture: str, config: dict[str, Any]
) -> None:
    first = Harness(tiny_model(architecture), **config).info
    again = Harness(tiny_model(architecture), **config | asdict(first.sizes)).info
    assert again == first


def test_memory_that_holds_no_state_is_refused() -> None:
    base = prepare(tiny_model("qwen3.5"))
    with pytest.raises(UnservableModelError, match="must hold 3 states of recurrent layers"):
        Harness(base, kv_memory=5 * base.recurrent.slot_bytes)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"speculative_tokens": 4}, "speculative_tokens must be 0, got 4: .* recurrent layers"),
        ({"deterministic": True, "kernels": "cpu"}, "deterministic: logits of Qwen3_5ForCausalLM"),
    ],
)
def test_what_recurrent_layers_do_not_do_is_refused(config: dict[str, Any], reason: str) -> None:
    with pytest.raises(UnservableModelError, match=reason):
        Harness(tiny_model("qwen3.5"), **config)


def test_parts_of_a_batch() -> None:
    states = StateBatch(
        read_B=np.array([0, 5, 6, 0]), write_B=np.array([4, 5, 6, 7]),
        kept=(KeptState(0, 2, 8), KeptState(1, 1, 9), KeptState(3, 3, 10), KeptState(3, 5, 11)),
    )  # fmt: skip
    singles, *runs = parts_of(np.array([0, 4, 5, 6, 11], np.int32), states, CPU)
    assert isinstance(singles, SingleTokens)
    assert isinstance(singles.rows, torch.Tensor)
    assert singles.rows.tolist() == [4, 5]
    assert (singles.read_N.tolist(), singles.write_N.tolist()) == ([5, 6], [5, 6])
    assert singles.kept == ((5, 9),)
    assert runs == [
        Run(slice(0, 2), 0, 4, 8, is_followed=True),
        Run(slice(2, 4), 4, 4),
        Run(slice(6, 9), 0, 7, 10, is_followed=True),
        Run(slice(9, 11), 7, 7, 11),
    ]
    assert in_steps(runs[0]) == [runs[0]]  # nothing was before it
    assert in_steps(Run(slice(2, 4), 3, 4)) == [Run(slice(2, 3), 3, 4), Run(slice(3, 4), 4, 4)]


def test_a_batch_of_single_tokens_is_one_part() -> None:
    states = StateBatch(read_B=np.array([5, 6]), write_B=np.array([5, 6]))
    (part,) = parts_of(np.array([0, 1, 2], np.int32), states, CPU)
    assert part.rows == slice(None)
