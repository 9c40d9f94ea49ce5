"""What a process may use, by the machine and by limits of a container."""

import contextlib
import json
import mmap
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import proclimits
import psutil
import pytest

from loramux_server.engine.allowance import all_memory, free_memory, num_cores

GIB = 1 << 30
CACHED = 96 << 20
LOOK = f"""
import json, os, sys
from loramux_server.engine.allowance import all_memory, free_memory, num_cores
before = free_memory()
with open(sys.argv[1], "wb") as file:
    file.write(bytes({CACHED}))
    file.flush()
    os.fsync(file.fileno())
after = free_memory()
print(json.dumps([all_memory(), before, after, num_cores()]))
"""


def limit(
    monkeypatch: pytest.MonkeyPatch,
    *, memory: tuple[int, int] | None = None, cores: float | None = None,
) -> None:  # fmt: skip
    """Let the container have `memory` (all of it, free) and `cores`, the machine 8 GiB and 4."""
    budget = None
    if memory:
        most, free = memory
        budget = proclimits.MemoryBudget(limit=most, used=most - free, available=free)
    monkeypatch.setattr(proclimits, "get_memory_budget", lambda: budget)
    monkeypatch.setattr(proclimits, "get_cpu_limit", lambda: cores)
    machine = SimpleNamespace(total=8 * GIB, available=6 * GIB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: machine)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 2, 3, 5}, raising=False)


@pytest.mark.parametrize(
    ("memory", "most", "free"),
    [
        (None, 8 * GIB, 6 * GIB),
        ((4 * GIB, 3 * GIB), 4 * GIB, 3 * GIB),
        ((7 * GIB, 7 * GIB), 7 * GIB, 6 * GIB),  # others have the rest of the machine's
        ((4 * GIB, 0), 4 * GIB, 0),
    ],
)
def test_memory_is_the_least_of_what_machine_and_container_have(
    memory: tuple[int, int] | None, most: int, free: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit(monkeypatch, memory=memory)
    assert all_memory() == most
    assert free_memory() == free


@pytest.mark.parametrize(
    ("cores", "threads"), [(None, 4), (64.0, 4), (4.0, 4), (2.5, 2), (1.0, 1), (0.25, 1)]
)
def test_there_are_as_many_threads_as_whole_cores_that_may_be_used(
    cores: float | None, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit(monkeypatch, cores=cores)
    assert num_cores() == threads


@contextlib.contextmanager
def group(source: proclimits.Source | None, **settings: str) -> Iterator[Path]:
    """A control group below the one of this process, with `settings`; a skip where none can be."""
    if source is None or not source.levels:
        pytest.skip("no control groups of this kind here")
    folder = Path(source.levels[0]) / f"loramux-test-{os.getpid()}"
    try:
        folder.mkdir()
        for name, value in settings.items():
            (folder / name.replace("__", ".")).write_text(value, encoding="ascii")
    except OSError as error:
        with contextlib.suppress(OSError):
            folder.rmdir()
        pytest.skip(f"no control group can be made here: {error}")
    try:
        yield folder
    finally:
        folder.rmdir()


def test_limits_of_a_control_group_are_kept_to(tmp_path: Path) -> None:
    found = proclimits.describe()
    memory, cpu = found.memory_source, found.cpu_quota_source
    is_new = memory is not None and memory.interface is proclimits.Interface.CGROUP_V2
    most = psutil.virtual_memory().total // 2 // mmap.PAGESIZE * mmap.PAGESIZE
    with contextlib.ExitStack() as groups:
        if is_new:
            settings = {"memory__max": str(most), "cpu__max": "100000 100000"}
            folders = [groups.enter_context(group(memory, **settings))]
        else:
            folders = [
                groups.enter_context(group(memory, memory__limit_in_bytes=str(most))),
                groups.enter_context(group(cpu, cpu__cfs_quota_us="100000")),
            ]
        joins = " && ".join(f'echo $$ > "{folder}/cgroup.procs"' for folder in folders)
        look = [sys.executable, "-c", LOOK, str(tmp_path / "cached")]
        output = subprocess.run(
            ["sh", "-c", f'{joins} && exec "$@"', "sh", *look],
            check=True, capture_output=True, timeout=60,
        ).stdout  # fmt: skip
    total, before, after, cores = json.loads(output)
    assert total == most
    assert before <= most
    assert before - after < CACHED // 2, "file cache counts as free"
    assert cores == 1
