"""Resident memory of the server's processes."""

from collections.abc import Callable

import psutil
from prometheus_client import Gauge


def show_memory(gauge: Gauge, engine_pid: Callable[[], int | None]) -> None:
    """Let `gauge` measure the memory of the frontend and the engine at each scrape.

    Args:
        gauge: Has the label `process`.
        engine_pid: Returns the engine's process id; None if it is not running.
    """
    frontend = psutil.Process()
    gauge.labels("frontend").set_function(lambda: float(frontend.memory_info().rss))
    gauge.labels("engine").set_function(lambda: _resident_bytes(engine_pid()))


def _resident_bytes(pid: int | None) -> float:
    if pid is None:
        return 0.0
    try:
        return float(psutil.Process(pid).memory_info().rss)
    except psutil.Error:  # it has just ended, and may be a zombie
        return 0.0
