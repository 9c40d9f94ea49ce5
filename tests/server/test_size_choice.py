"""What an engine has of what its config leaves open."""

import logging
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import asdict

from loramux_server.engine.size_choice import Resources, choose
from loramux_server.wire.engine_config import EngineConfig
from loramux_server.wire.engine_sizes import EngineSizes
from tests.support.engine import Harness
from tests.support.models import tiny_model

MIB, GIB = 1 << 20, 1 << 30
LLAMA_8B = Resources(
    is_gpu=True, device=62 * GIB, host=200 * GIB, row_bytes=4 * 2_621_440,
    token_bytes=2 * (4096 + 2 * 14336), logits_bytes=4 * 128_256,
)  # fmt: skip
"""Of an 80 GB device, once the base has its part."""
RANK_16 = 16 * LLAMA_8B.row_bytes // 2
KV_TOKEN = 131_072

memory = st.one_of(st.just(0), st.integers(1, 1 << 40))
numbers = st.one_of(st.just(0), st.integers(1, 1 << 16))
configs = st.builds(
    EngineConfig, model=st.just(""), max_running=numbers, max_batch_tokens=numbers,
    kv_memory=memory, adapter_memory=memory, host_adapter_memory=memory,
)  # fmt: skip
resources = st.builds(
    Resources, is_gpu=st.booleans(), device=st.integers(0, 1 << 40), host=st.integers(0, 1 << 42),
    row_bytes=st.integers(0, 1 << 26), token_bytes=st.integers(0, 1 << 22),
    logits_bytes=st.integers(0, 1 << 22),
)  # fmt: skip
OPEN = EngineConfig(model="")


@given(configs, resources)
def test_what_is_set_counts_and_nothing_is_negative(
    config: EngineConfig, resources: Resources
) -> None:
    for name, size in asdict(choose(config, resources)).items():
        wanted = getattr(config, name)
        assert size == wanted if wanted else size >= 0, name


@given(configs, resources)
def test_what_is_left_open_fits_what_is_free(config: EngineConfig, resources: Resources) -> None:
    chosen = choose(config, resources)
    if not config.host_adapter_memory:
        assert 9 * chosen.host_adapter_memory <= 8 * resources.host  # as rooms lie there
    if not (config.kv_memory or config.adapter_memory):
        assert chosen.kv_memory + chosen.adapter_memory <= resources.device
    elif resources.is_gpu and not (config.kv_memory and config.adapter_memory):
        most = max(resources.device, config.kv_memory, config.adapter_memory)
        assert chosen.kv_memory + chosen.adapter_memory <= most


@given(resources)
def test_on_a_cpu_all_together_leaves_a_third_to_others(resources: Resources) -> None:
    chosen = choose(OPEN, replace(resources, is_gpu=False, device=resources.host))
    taken = chosen.kv_memory + chosen.adapter_memory + chosen.host_adapter_memory
    assert 3 * taken <= 2 * resources.host


@given(configs, resources, st.integers(0, 1 << 40), st.integers(0, 1 << 40))
def test_more_memory_never_means_less_of_anything(
    config: EngineConfig, resources: Resources, device: int, host: int
) -> None:
    larger = replace(resources, device=resources.device + device, host=resources.host + host)
    before, after = asdict(choose(config, resources)), asdict(choose(config, larger))
    assert all(after[name] >= size for name, size in before.items())


@given(configs, resources)
def test_an_engine_that_is_given_what_was_chosen_has_the_same(
    config: EngineConfig, resources: Resources
) -> None:
    chosen = choose(config, resources)
    if all(asdict(chosen).values()):
        nothing = replace(resources, device=0, host=0)
        assert choose(chosen.in_config(config), nothing) == chosen


def test_a_cpu_has_as_much_as_it_always_had() -> None:
    machine = replace(LLAMA_8B, is_gpu=False, device=16 * GIB, host=16 * GIB)
    assert choose(OPEN, machine) == EngineSizes(
        max_running=64, max_batch_tokens=512, kv_memory=4 * GIB, adapter_memory=GIB,
        host_adapter_memory=4 * GIB,
    )  # fmt: skip


def test_a_small_container_is_not_filled() -> None:
    container = replace(LLAMA_8B, is_gpu=False, device=2 * GIB, host=2 * GIB)
    chosen = choose(OPEN, container)
    assert chosen.kv_memory == chosen.host_adapter_memory == GIB // 2
    assert chosen.adapter_memory == GIB // 4


def test_a_gpu_is_filled_with_contexts_and_a_quarter_of_adapters() -> None:
    chosen = choose(OPEN, LLAMA_8B)
    assert (chosen.max_running, chosen.max_batch_tokens) == (256, 2048)
    assert chosen.adapter_memory // RANK_16 == 178
    assert chosen.kv_memory // KV_TOKEN == 342_835
    assert chosen.host_adapter_memory == 50 * GIB
    used = chosen.kv_memory + chosen.adapter_memory
    assert used == pytest.approx(0.9 * LLAMA_8B.device)


def test_a_gpu_that_is_nearly_full_leaves_half_to_steps() -> None:
    chosen = choose(OPEN, replace(LLAMA_8B, device=2 * GIB))
    assert chosen.kv_memory + chosen.adapter_memory == GIB
    assert chosen.adapter_memory >= 2 * RANK_16


def test_what_is_set_for_one_leaves_less_to_the_other() -> None:
    adapters = choose(EngineConfig(model="", kv_memory=50 * GIB), LLAMA_8B).adapter_memory
    assert 5 * GIB < adapters < 6 * GIB
    assert choose(EngineConfig(model="", kv_memory=70 * GIB), LLAMA_8B).adapter_memory == 0
    assert choose(EngineConfig(model="", adapter_memory=GIB), LLAMA_8B).kv_memory > 54 * GIB


def test_adapters_of_a_small_base_do_not_fill_a_large_gpu() -> None:
    small = replace(LLAMA_8B, row_bytes=4096, token_bytes=2048)
    chosen = choose(OPEN, small)
    assert chosen.adapter_memory // (16 * small.row_bytes // 2) == 4096
    assert chosen.kv_memory > 55 * GIB


def test_the_log_says_what_was_chosen_and_how_much_that_holds(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    harness = Harness(tiny_model("llama"), adapter_memory=64 * MIB, kv_memory=MIB, max_running=5)
    (line,) = [record for record in caplog.records if record.name.endswith("size_log")]
    fields = line.__dict__["fields"]
    assert fields["chosen"] == ["max_batch_tokens", "host_adapter_memory"]
    assert fields["max_running"] == 5 and fields["max_batch_tokens"] == 512
    assert fields["kv_tokens"] == 4 * harness.info.num_blocks
    layers = [each for name, each in harness.info.layers.items() if ".layers." in name]
    per_adapter = 16 * 2 * sum(each.in_features + each.out_features for each in layers)
    host = harness.info.sizes.host_adapter_memory
    assert fields["host_adapters"] == host // per_adapter
    assert fields["device_adapters"] == pytest.approx(64 * MIB / per_adapter, rel=0.01)
    assert f"{fields['device_adapters']} and {fields['host_adapters']} adapters" in line.message
    assert line.message.endswith("chosen here: max_batch_tokens, host_adapter_memory")


def test_more_memory_of_the_host_than_there_is_is_reported(
    caplog: pytest.LogCaptureFixture,
) -> None:
    Harness(tiny_model("llama"), host_adapter_memory=1 << 50)
    assert f"host_adapter_memory ({1 << 50} bytes) exceeds all memory" in caplog.text
