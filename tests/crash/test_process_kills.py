"""Real processes that end in the middle of what they do."""

import subprocess
import sys


def test_a_process_that_ends_leaves_what_it_acknowledged() -> None:
    # In a process of its own, which has no threads and may fork.
    done = subprocess.run(
        [sys.executable, "-m", "tests.crash.kills", "5", "43"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 12
