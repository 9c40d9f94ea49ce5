"""Where the disks of these tests are."""

from tests.crash.conftest import disk

__all__ = ["disk"]
