"""Ends real processes at the operations of a story, and looks at what is left: SQLite's own files
are real here.

`python -m tests.crash.kills FIRST STEP` ends processes at moment FIRST, FIRST + STEP and so on of
each story, and prints how many.
"""

import contextlib
import os
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.crash.recovery import check_recovery
from tests.crash.registry_model import RegistryModel
from tests.crash.seen import Op
from tests.crash.story import STORIES, Teller
from tests.support.memory import memory_folder

KILLED = 9
"""Exit code of a process that ended itself on purpose."""
DONE = 0


class Killer:
    """Ends the process at an operation; each is two moments, and a write is three."""

    def __init__(self, moment: int, acknowledged: int) -> None:
        """Prepare.

        Args:
            moment: When.
            acknowledged: A descriptor that gets a byte when a call begins, and when it is answered.
        """
        self._left = moment
        self._acknowledged = acknowledged

    def before(self, op: Op) -> int | None:
        self._count()
        if op.kind == "write" and self._left == 0:
            return len(op.data) // 2 or 1
        return None

    def after(self, op: Op) -> None:
        if op.kind == "write":
            self._count()
        self._count()

    @contextlib.contextmanager
    def change(self, after: RegistryModel) -> Iterator[None]:
        os.write(self._acknowledged, b"b")
        yield
        os.write(self._acknowledged, b"a")

    def _count(self) -> None:
        if self._left == 0:
            os._exit(KILLED)
        self._left -= 1


class Tellings:
    """Keeps what each call of a story leads to."""

    def __init__(self) -> None:
        self.model = [RegistryModel()]

    def before(self, op: Op) -> None:
        pass

    def after(self, op: Op) -> None:
        pass

    @contextlib.contextmanager
    def change(self, after: RegistryModel) -> Iterator[None]:
        self.model.append(after)
        yield


def kill_at(
    folder: Path, story: Callable[[Teller], None], moment: int, model: list[RegistryModel]
) -> bool:
    """Let a story happen in a process that ends at `moment`, and check what it leaves.

    Returns:
        Whether the story came that far.
    """
    store, log = folder / "store", folder / "acknowledged"
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            descriptor = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
            teller = Teller(store, Killer(moment, descriptor))
            story(teller)
            teller.close()
            code = DONE
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (KILLED, DONE), f"the process failed at moment {moment}"
    calls = log.read_bytes().decode()
    num_told = calls.count("a")
    allowed = model[num_told : num_told + calls.count("b") - num_told + 1]
    check_recovery(store, allowed, power_cut=False)
    shutil.rmtree(store)
    return code == KILLED


def tellings(folder: Path, story: Callable[[Teller], None]) -> list[RegistryModel]:
    """Return what callers know after each call of a story."""
    keeper = Tellings()
    teller = Teller(folder, keeper)
    story(teller)
    teller.close()
    shutil.rmtree(folder)
    return keeper.model


def end_processes(folder: Path, *, first: int, step: int) -> int:
    """End a process at moments of each story, and return how many were ended."""
    num_ended = 0
    for story in STORIES.values():
        model = tellings(folder / "store", story)
        moment = first
        while kill_at(folder, story, moment, model):
            moment += step
            num_ended += 1
    return num_ended


def main() -> None:
    with tempfile.TemporaryDirectory(dir=memory_folder()) as folder:
        print(end_processes(Path(folder), first=int(sys.argv[1]), step=int(sys.argv[2])))


if __name__ == "__main__":
    main()
