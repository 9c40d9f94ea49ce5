"""What a server holds at a moment, seen from outside."""

import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from tests.support.server import RunningServer

MIB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One look; memory is in MiB, the rest are counts."""

    done: int
    """Things that clients had done by then."""
    frontend: float
    """Resident memory of the frontend."""
    engine: float
    """Resident memory of the engine."""
    helpers: float
    """Resident memory of the processes that run chat templates and follow forms."""
    descriptors: int
    """Open files and sockets of all processes."""
    threads: int
    """Of all processes."""
    processes: int
    tasks: int
    """Of the frontend's event loop."""
    leases: int
    requests: int
    """In the batch and in the queue."""
    blocks: int
    """KV blocks that requests hold."""
    states: int
    """States of recurrent layers that requests hold."""
    preemptions: int
    """Since the server started."""
    adapters: int
    resident: int
    """Adapters in memory, in all tiers."""
    series: int
    """Samples of a metrics page."""
    files: int
    """In the store's folder."""

    def as_dict(self) -> dict[str, float]:
        return {name: round(value, 2) for name, value in asdict(self).items()}


def take(server: RunningServer, store: Path, done: int) -> Sample:
    """Look at `server`, whose store is in a folder."""
    frontend = psutil.Process(server.pid)
    engine = psutil.Process(server.engine_pid)
    others = [child for child in frontend.children(recursive=True) if child != engine]
    processes = [frontend, engine, *others]
    metrics = server.metrics()

    def gauge(name: str) -> int:
        return int(sum(v for key, v in metrics.items() if key.split("{")[0] == f"loramux_{name}"))

    return Sample(
        done=done,
        frontend=frontend.memory_info().rss / MIB,
        engine=engine.memory_info().rss / MIB,
        helpers=sum(process.memory_info().rss for process in others) / MIB,
        descriptors=sum(process.num_fds() for process in processes),
        threads=sum(process.num_threads() for process in processes),
        processes=len(processes),
        tasks=gauge("loop_tasks"),
        leases=gauge("adapter_leases"),
        requests=gauge("requests_running") + gauge("requests_waiting"),
        blocks=gauge("kv_blocks_used"),
        states=gauge("recurrent_states_used"),
        preemptions=gauge("preemptions_total"),
        adapters=gauge("adapters_registered"),
        resident=gauge("adapters_resident"),
        series=len(metrics),
        files=sum(path.is_file() for path in store.rglob("*")),
    )


class Sampler:
    """Looks again and again in a thread as long as the block runs."""

    def __init__(self, look: Callable[[], Sample], interval: float) -> None:
        self.samples: list[Sample] = []
        self._look = look
        self._interval = interval
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._is_over.set()
        self._thread.join()

    def _run(self) -> None:
        due = time.monotonic()
        while not self._is_over.wait(max(0.0, due - time.monotonic())):
            self.samples.append(self._look())
            due += self._interval
