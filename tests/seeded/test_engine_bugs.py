"""The tests of the tests: an engine that mixes requests up does not pass."""

from collections.abc import Callable

import pytest
from hypothesis import Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from loramux_server.wire.weight_format import WeightFormat
from tests.kernels import test_add_lora, test_attention
from tests.seeded import engine_bugs as bugs
from tests.server import test_sampler
from tests.server.test_engine_properties import EngineMachine

Seed = Callable[[pytest.MonkeyPatch], None]

SETTINGS = settings(
    max_examples=800, stateful_step_count=40, derandomize=True, database=None,
    phases=[Phase.generate], report_multiple_bugs=False,
)  # fmt: skip


@pytest.mark.parametrize(
    "seed",
    [
        bugs.keep_a_row_after_eviction,
        bugs.name_blocks_without_adapter,
        bugs.end_a_segment_one_token_early,
        bugs.give_the_base_the_first_rows,
    ],
    ids=lambda seed: seed.__name__,
)
def test_the_engine_driven_at_random_finds(monkeypatch: pytest.MonkeyPatch, seed: Seed) -> None:
    seed(monkeypatch)
    with pytest.raises(AssertionError):
        run_state_machine_as_test(EngineMachine, settings=SETTINGS)


def test_a_test_of_the_sampler_finds_shared_random_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bugs.share_random_numbers(monkeypatch)
    with pytest.raises(AssertionError):
        test_sampler.test_a_seed_decides_whatever_the_neighbours()


def test_a_test_of_the_kernels_finds_a_scale_of_the_whole_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bugs.scale_all_as_the_first(monkeypatch)
    with pytest.raises(AssertionError):
        test_add_lora.test_it_is_what_float64_gives(
            "definition", "decode-mixed-ranks", [WeightFormat.FLOAT32], has_vectors=False
        )


def test_a_test_of_the_kernels_finds_a_mask_by_multiplication(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bugs.mask_by_multiplying(monkeypatch)
    with pytest.raises(AssertionError):
        test_attention.test_it_is_what_float64_gives("definition", "chunk", "softcap")
