"""Where files of tests are in memory, and no sync waits for a disk."""

from pathlib import Path


def memory_folder() -> str | None:
    """Return such a folder; None, which means a temporary one, where there is none."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None
