"""Real processes that end in the middle of what they do."""

import subprocess
import sys

import pytest

from tests.crash.story import STORIES


@pytest.mark.parametrize("name", STORIES)
def test_a_process_that_ends_leaves_what_it_acknowledged(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.crash.kills", name, "1", "17"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 5
