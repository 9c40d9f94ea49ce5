"""Where the disks of these tests are."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


def memory_folder() -> str | None:
    """Return a folder in memory, where nothing waits for a disk; None where there is none."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


@pytest.fixture
def disk() -> Iterator[Path]:
    """A folder for stores that are opened by the hundred."""
    with tempfile.TemporaryDirectory(dir=memory_folder()) as name:
        yield Path(name)
