"""A few faults under load; `make chaos` has many."""

from pathlib import Path

from tests.chaos import campaign, table
from tests.support.fake_server import answered, asked
from tests.support.harmed import started


def test_no_stream_hangs_and_no_drain_loses_one(tmp_path: Path) -> None:
    with started("fake", tmp_path) as server:
        outcome = campaign(
            server, answered, asked, cycles=1, seconds=240, max_tokens=(5, 40), min_streams=8
        )
    assert outcome.num_hung == outcome.num_wrong == 0, table(outcome)
    assert outcome.surprises == []
    assert outcome.left == {}
    assert sum(faults.count for faults in outcome.faults.values()) == 4
    assert outcome.faults["drained"].lost == 0, table(outcome)
    assert sum(len(faults.seconds_to_status) for faults in outcome.faults.values()) > 5
