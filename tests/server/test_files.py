"""What is synced reaches the disk: the operating system is asked for it."""

import errno
import os
from pathlib import Path

import pytest

from loramux_server.store.files import Files

INVALID = os.strerror(errno.EINVAL)


def test_a_file_is_synced_by_the_system() -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as received, os.fdopen(writing, "wb") as file:
        file.write(b"a")
        # A pipe has no disk, of which only the system knows.
        with pytest.raises(OSError, match=INVALID):
            Files().sync(file)
        assert received.read(1) == b"a"


def test_a_folder_is_synced_by_the_system() -> None:
    # Nor do the names in this one.
    with pytest.raises(OSError, match=INVALID):
        Files().sync_folder(Path("/proc"))


def test_what_has_a_disk_is_synced(tmp_path: Path) -> None:
    files = Files()
    with files.create(tmp_path / "a", must_not_exist=True) as file:
        file.write(b"a")
        files.sync(file)
        assert (tmp_path / "a").read_bytes() == b"a"
    files.sync_folder(tmp_path)
