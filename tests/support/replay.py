"""Launches of kernels, done again with the same arguments, as a graph of the device does."""

from collections.abc import Callable
from typing import Any

import pytest


def record(monkeypatch: pytest.MonkeyPatch, kernel: Any) -> Callable[[], None]:
    """Return what launches `kernel` again as all that is launched from now on."""
    launches: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    run = type(kernel).run

    def recorded(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self is kernel:
            launches.append((args, kwargs))
        return run(self, *args, **kwargs)

    monkeypatch.setattr(type(kernel), "run", recorded)

    def replay() -> None:
        for args, kwargs in launches:
            run(kernel, *args, **kwargs)

    return replay
