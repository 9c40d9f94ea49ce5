"""How long an engine may be silent."""

import pytest

from loramux_server.engine_link.watchdog import Watchdog
from loramux_server.wire.messages import BatchSize


class Watched:
    """A watchdog that is looked after at its own interval, on a clock of the test."""

    def __init__(self, seconds: float = 8.0, max_batch_tokens: int = 512) -> None:
        self.dog = Watchdog(seconds, max_batch_tokens)
        self.now = 100.0
        self.dog.begin(self.now)

    def barks_after(self, limit: float) -> float | None:
        """Return the seconds of silence after which it has had enough, if within `limit`."""
        begin = self.now
        while self.now - begin < limit:
            self.now += self.dog.interval
            if self.dog.poll(self.now):
                return self.now - begin
        return None


def test_silence_is_noticed_soon_after_it_was_too_long() -> None:
    watched = Watched(8.0)
    found = watched.barks_after(100)
    assert found is not None
    assert 8 < found <= 8 + 2 * watched.dog.interval


def test_a_sign_of_life_begins_the_silence_anew() -> None:
    watched = Watched(8.0)
    for _ in range(5):
        assert watched.barks_after(7) is None
        watched.dog.record_report(None)


@pytest.mark.parametrize(
    ("steps", "patience"),
    [
        pytest.param([BatchSize(1, 1, 0, 0.1)] * 20, 8.0, id="quick-steps"),
        pytest.param([BatchSize(1, 1, 0, 3.0)] * 20, 30.0, id="slow-decode"),
        pytest.param([BatchSize(1, 64, 0, 4.0)] * 20, 128.0, id="slow-prompts"),
        pytest.param(
            [BatchSize(1, 1, 0, 0.1)] * 9 + [BatchSize(1, 1, 0, 60.0)], 8.0, id="one-interruption"
        ),
    ],
)
def test_it_is_as_patient_as_steps_are_slow(steps: list[BatchSize], patience: float) -> None:
    watched = Watched(8.0, max_batch_tokens=512)
    for step in steps:
        watched.dog.record_report(step)
    assert watched.dog.patience == pytest.approx(patience)


def test_a_watcher_that_was_held_up_itself_blames_nobody() -> None:
    watched = Watched(8.0)
    watched.now += 3600
    assert not watched.dog.poll(watched.now)
    watched.dog.record_report(None)
    assert watched.barks_after(7) is None
