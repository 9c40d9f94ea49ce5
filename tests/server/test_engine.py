"""What the engine refuses by itself, whatever the frontend let through."""

import errno
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, cast

import pytest

from loramux.errors import UnavailableError
from loramux_server.engine_link.client import _error_of
from loramux_server.lora import packed
from loramux_server.lora.packed import DamagedError, UnreadableError
from loramux_server.wire.adapter_source import AdapterSource
from loramux_server.wire.ask import Ask
from loramux_server.wire.messages import Failure, Report, Submit
from loramux_server.wire.sampling import Sampling
from tests.support.engine import InlineExecutor
from tests.support.fake import BLOCK_SIZE, FakeModel, completion, fake_engine, fake_source

NUM_BLOCKS = 4
CONTEXT = NUM_BLOCKS * BLOCK_SIZE
GREEDY = Sampling(max_tokens=3, seed=0, temperature=0.0, ignore_eos=True)


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        pytest.param([], "INVALID_FIELD", id="no-tokens"),
        pytest.param([5] * CONTEXT, "CONTEXT_LENGTH_EXCEEDED", id="no-room-for-a-token"),
        pytest.param([5] * 9 * CONTEXT, "CONTEXT_LENGTH_EXCEEDED", id="more-than-all-blocks"),
    ],
)
def test_a_prompt_that_can_never_run_fails_and_holds_up_nobody(
    prompt: list[int], reason: str
) -> None:
    engine, *_ = fake_engine(num_blocks=NUM_BLOCKS, rows=8)
    engine.receive([Submit(0, Ask(prompt, None, GREEDY)), Submit(1, Ask([7, 8], None, GREEDY))])
    reports: list[Report] = [engine.step() for _ in range(4)]
    engine.check()
    (failure,) = [failure for report in reports for failure in report.failures]
    assert (failure.request_id, failure.reason) == (0, reason)
    tokens = [token.token for report in reports for token in report.tokens]
    assert tokens == completion([7, 8], 0, 3, eos=False)


def test_the_longest_prompt_runs() -> None:
    engine, *_ = fake_engine(num_blocks=NUM_BLOCKS, rows=8)
    prompt = [5] * (CONTEXT - 1)
    engine.receive([Submit(0, Ask(prompt, None, GREEDY))])
    (token,) = engine.step().tokens
    assert token.token == completion(prompt, 0, 1, eos=False)[0]
    assert token.finish == "length"


def test_a_full_queue_refuses_no_completion_that_goes_on() -> None:
    engine, *_ = fake_engine(num_blocks=40, rows=8, max_running=1, max_waiting=1)
    engine.receive([Submit(number, Ask([5, 6], None, GREEDY)) for number in range(3)])
    engine.receive([Submit(3, Ask([5, 6, 7], None, GREEDY, num_generated=1))])
    reports = [engine.step() for _ in range(4)]
    (failure,) = [failure for report in reports for failure in report.failures]
    assert (failure.request_id, failure.reason) == (2, "QUEUE_FULL")
    tokens = [token for report in reports for token in report.tokens if token.request_id == 3]
    assert [token.token for token in tokens] == completion([5, 6, 7], 0, 3, eos=False)[:3]
    assert not [started for report in reports for started in report.started if started.request_id]


def test_while_the_device_is_full_who_finds_its_adapter_there_goes_first_but_not_for_ever() -> None:
    engine, *_ = fake_engine(
        num_blocks=40, rows=8, max_bypassed=2, max_running=8, executor=InlineExecutor()
    )
    here, away = fake_source(1, 8), fake_source(2, 8)  # there is room for one of them
    starts: list[int] = []

    def step() -> Report:
        report = engine.step()
        engine.check()
        starts.extend(started.request_id for started in report.started)
        return report

    engine.receive([Submit(0, Ask([5, 6], here, GREEDY))])
    while not starts:
        step()
    engine.receive([Submit(1, Ask([5, 6], away, GREEDY))])
    engine.receive([Submit(number, Ask([5, 6], here, GREEDY)) for number in (2, 3, 4)])
    for _ in range(30):
        step()
    assert starts == [0, 2, 3, 1, 4]


class Exhausted(FakeModel):
    """Has no memory for any adapter."""

    def load(self, source: AdapterSource) -> NoReturn:
        raise MemoryError


def test_a_load_without_memory_ends_who_waits_for_it_and_nobody_else() -> None:
    engine, *_ = fake_engine(
        num_blocks=NUM_BLOCKS, rows=8, executor=InlineExecutor(), model=Exhausted()
    )
    engine.receive(
        [Submit(0, Ask([5], fake_source(1, 8), GREEDY)), Submit(1, Ask([7, 8], None, GREEDY))]
    )
    reports = [engine.step() for _ in range(6)]
    engine.check()
    (failure,) = [failure for report in reports for failure in report.failures]
    assert (failure.request_id, failure.reason) == (0, "ENGINE_OUT_OF_MEMORY")
    tokens = [token.token for report in reports for token in report.tokens]
    assert tokens == completion([7, 8], 0, 3, eos=False)
    error = _error_of(failure)
    assert isinstance(error, UnavailableError)
    assert error.retry_delay


class Defective(FakeModel):
    """Fails as nobody expects."""

    def load(self, source: AdapterSource) -> NoReturn:
        raise RuntimeError("a bug at 0x7f00 in /srv/private")


def test_of_a_load_that_fails_by_a_defect_callers_get_a_number_and_the_log_the_text(
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine, *_ = fake_engine(
        num_blocks=NUM_BLOCKS, rows=8, executor=InlineExecutor(), model=Defective()
    )
    engine.receive([Submit(0, Ask([5], fake_source(1, 8), GREEDY))])
    reports = [engine.step() for _ in range(3)]
    (failure,) = [failure for report in reports for failure in report.failures]
    (why,) = [why for report in reports for why in report.failed_loads.values()]
    assert failure.reason == "INTERNAL"
    assert failure.message == f"the stored adapter cannot be loaded: {why}"
    assert re.fullmatch("internal error, incident [0-9a-f]{16}", why)
    assert why.rpartition(" ")[2] in caplog.text
    assert "/srv/private" in caplog.text


def test_an_adapter_that_cannot_be_read_for_a_moment_is_not_called_damaged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = Path("/nowhere")

    def failing(code: int) -> Callable[[Path, str, str], NoReturn]:
        def read(path: Path, digest: str, seal: str) -> NoReturn:
            raise OSError(code, "injected")

        return read

    for code, kind in ((errno.EMFILE, UnreadableError), (errno.EIO, DamagedError)):
        monkeypatch.setattr(packed._reader, "reading", failing(code))
        with pytest.raises(DamagedError, match="injected") as caught:
            packed.load_packed(path, "sha256:0", cast(Any, None))
        assert type(caught.value) is kind
    failure = Failure(1, UnreadableError.reason, "cannot be read")
    error = _error_of(failure)
    assert isinstance(error, UnavailableError)
    assert (error.reason, error.retry_delay) == ("STORE_UNAVAILABLE", 1.0)
