"""Where the disks of these tests are."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.memory import memory_folder


@pytest.fixture
def disk() -> Iterator[Path]:
    """A folder for stores that are opened by the hundred."""
    with tempfile.TemporaryDirectory(dir=memory_folder()) as name:
        yield Path(name)
