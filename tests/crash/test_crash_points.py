"""Crashes at every operation of the store: nothing acknowledged is lost, nothing is partial."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.crash.journal import Journal
from tests.crash.recovery import Replay
from tests.crash.story import STORIES, Teller, ramble

OUTCOMES = 1
"""Of a power cut, after each operation: nothing is left of what was not synced. `make crash` tries
more of what may be."""


def record(folder: Path, story: Callable[[Teller], None]) -> Journal:
    """Let a story happen."""
    journal = Journal(folder)
    teller = Teller(folder, journal)
    story(teller)
    teller.close()
    return journal


@pytest.mark.parametrize("name", STORIES)
def test_what_was_acknowledged_survives_a_kill_at_any_moment(disk: Path, name: str) -> None:
    replay = Replay(disk)
    replay.kills(record(disk / "recorded", STORIES[name]))
    assert replay.tally.states > 20


@pytest.mark.parametrize("name", STORIES)
def test_what_was_acknowledged_survives_a_power_cut_at_any_moment(disk: Path, name: str) -> None:
    replay = Replay(disk)
    replay.power_cuts(record(disk / "recorded", STORIES[name]), OUTCOMES)
    assert replay.tally.states > 10


@pytest.mark.parametrize("seed", range(2))
def test_so_does_what_random_calls_were_answered(disk: Path, seed: int) -> None:
    replay = Replay(disk)
    replay.kills(record(disk / "recorded", ramble(seed, 24)))
    assert replay.tally.states > 40
