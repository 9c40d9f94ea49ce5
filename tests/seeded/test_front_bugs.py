"""The tests of the tests: a frontend that breaks its promises does not pass."""

from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import grpc
import pytest

from loramux_server.store.catalog import Catalog
from tests.seeded import front_bugs as bugs
from tests.server import (
    test_gate,
    test_giving_up,
    test_keys,
    test_rpc,
    test_rules,
    test_server,
    test_streaming,
    test_waiting_room,
)
from tests.server.test_streaming import Served
from tests.support.access import Keys

Seed = Callable[[pytest.MonkeyPatch], None]

FAILS = (AssertionError, pytest.fail.Exception)
"""How a test fails: the second is that of a `pytest.raises` in which nothing was raised."""


@pytest.mark.parametrize(
    ("seed", "reach"),
    [
        (bugs.ignore_a_cancel_in_the_queue, test_giving_up.queued),
        (bugs.ignore_a_cancel_in_the_queue, test_giving_up.loading),
        (bugs.ignore_a_cancel_in_decode, test_giving_up.prefill),
        (bugs.ignore_a_cancel_in_decode, test_giving_up.decode),
    ],
    ids=lambda value: value.__name__,
)
def test_a_test_of_giving_up_finds(
    monkeypatch: pytest.MonkeyPatch, seed: Seed,
    reach: Callable[[test_giving_up.Place, float | None], None],
) -> None:  # fmt: skip
    seed(monkeypatch)
    with pytest.raises(FAILS):
        test_giving_up.test_nothing_is_held_one_step_later(reach, "cancel")


async def gives_up(*, is_queued: bool) -> None:
    await test_streaming.test_what_its_caller_gives_up_ends_in_the_engine(Served(), is_queued)


async def dies() -> None:
    await test_streaming.test_a_death_of_the_engine_ends_who_waits_and_who_is_behind(Served())


async def has_tokens(vocab_size: int) -> None:
    await test_streaming.test_the_model_says_which_tokens_there_are_and_not_its_tokenizer(
        vocab_size
    )


@pytest.mark.parametrize(
    ("seed", "check"),
    [
        (bugs.tell_of_no_cancel_in_the_queue, partial(gives_up, is_queued=True)),
        (bugs.tell_of_no_cancel_in_decode, partial(gives_up, is_queued=False)),
        (bugs.tell_one_call_of_the_death, dies),
        (bugs.take_the_tokenizer_for_the_vocabulary, partial(has_tokens, 250)),
        (bugs.take_the_tokenizer_for_the_vocabulary, partial(has_tokens, 300)),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
async def test_a_test_of_streams_finds(
    monkeypatch: pytest.MonkeyPatch, seed: Seed, check: Callable[[], Awaitable[None]]
) -> None:
    seed(monkeypatch)
    with pytest.raises(FAILS):
        await check()


@pytest.mark.parametrize(
    "check",
    [
        test_streaming.test_a_name_that_is_not_registered_is_no_label,
        test_streaming.test_an_adapter_counts_under_its_name_however_it_was_asked_for,
    ],
)
async def test_a_test_of_streams_finds_labels_that_callers_make_up(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, check: Callable[[Path], Awaitable[None]]
) -> None:
    bugs.label_by_what_was_asked_for(monkeypatch)
    with pytest.raises(FAILS):
        await check(tmp_path)


@pytest.mark.parametrize(
    ("seed", "check"),
    [
        (bugs.show_the_health_of_the_start, test_server.test_health_is_that_of_the_engine),
        (
            bugs.stop_the_engine_before_the_calls,
            test_server.test_what_is_under_way_when_the_server_ends_is_answered_whole,
        ),
        (
            bugs.stop_reading_the_engine_in_a_drain,
            test_server.test_what_is_under_way_when_the_server_ends_is_answered_whole,
        ),
    ],
    ids=lambda value: value.__name__,
)
async def test_a_test_of_the_whole_server_finds(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, seed: Seed,
    check: Callable[[Path, pytest.MonkeyPatch], Awaitable[None]],
) -> None:  # fmt: skip
    monkeypatch.setattr(test_server, "PATIENCE", 1.0)
    seed(monkeypatch)
    with pytest.raises((*FAILS, grpc.aio.AioRpcError)):
        await check(tmp_path, monkeypatch)


def test_a_test_of_the_waiting_room_finds_a_queue_without_bounds_in_bytes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bugs.count_no_bytes(monkeypatch)
    with pytest.raises(FAILS):
        test_waiting_room.test_bytes_count_until_all_completions_have_started()


@pytest.mark.parametrize("is_stream", [False, True])
async def test_a_test_of_defects_finds_their_text_in_an_answer(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, is_stream: bool
) -> None:
    bugs.answer_with_the_text_of_exceptions(monkeypatch)
    with pytest.raises(FAILS):
        await test_rpc.test_of_a_defect_callers_get_a_number_and_the_log_the_text(caplog, is_stream)


@pytest.mark.parametrize("says", [True, False])
def test_a_test_of_keys_finds_a_comparison_that_reveals_how_much_is_right(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, says: bool
) -> None:
    catalog = Catalog.in_folder(tmp_path)
    bugs.compare_keys_letter_by_letter(monkeypatch)
    with pytest.raises(FAILS):
        test_keys.test_nothing_but_the_comparison_in_constant_time_decides(
            test_keys.Setup(catalog, tmp_path), monkeypatch, says
        )
    catalog.close()


@pytest.mark.parametrize(
    ("seed", "check"),
    [
        (bugs.forget_a_rule, test_rules.test_every_method_has_a_row_and_every_row_a_method),
        (bugs.leave_a_method_to_everybody, test_rules.test_only_health_is_for_everybody),
    ],
    ids=lambda value: value.__name__,
)
def test_a_test_of_rules_finds(
    monkeypatch: pytest.MonkeyPatch, seed: Seed, check: Callable[[], None]
) -> None:
    seed(monkeypatch)
    with pytest.raises(FAILS):
        check()


async def test_a_test_of_the_gate_finds_that_it_is_open_for_what_has_no_rule(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bugs.let_pass_what_has_no_rule(monkeypatch)
    keys = Keys(tmp_path)
    with pytest.raises(FAILS):
        await test_gate.test_nobody_may_call_what_nobody_decided_about(tmp_path, keys)
    keys.close()
