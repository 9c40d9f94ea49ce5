"""Waiting for what happens in another process."""

import time
from collections.abc import Callable


def eventually(condition: Callable[[], bool], seconds: float = 15) -> bool:
    """Return whether `condition` holds within `seconds`, as soon as it does."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
