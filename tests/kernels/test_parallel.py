"""How kernels are compiled."""

import fcntl
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loramux_server.kernels.cpu import parallel

JOB = np.dtype([("number", np.int64)])


def nothing(job: Any) -> None:
    """A kernel that nobody has compiled."""


def test_one_process_compiles_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "user_cache_path", lambda *_, **__: tmp_path)
    found: list[int] = []
    compiling = threading.Thread(
        target=lambda: found.append(parallel.compiled_address(nothing, JOB))
    )
    with (tmp_path / "compiling.lock").open("a") as other:  # as another process has it
        fcntl.flock(other, fcntl.LOCK_EX)
        compiling.start()
        compiling.join(1)
        assert not found
    compiling.join(60)
    assert len(found) == 1 and found[0]


def test_without_a_folder_for_the_lock_kernels_are_compiled_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object, **__: object) -> Path:
        raise PermissionError

    monkeypatch.setattr(parallel, "user_cache_path", refuse)
    assert parallel.compiled_address(lambda job: None, JOB)
