"""Runs tests on mutants: in forks of a process that has loaded everything that is not ours."""

import contextlib
import importlib
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parent.parent.parent
FOLDERS = ("client", "server", "adapters")
LIBRARIES = (
    "torch", "numpy", "peft", "safetensors.torch", "transformers", "tokenizers", "grpc",
    "grpc_health.v1", "grpc_reflection.v1alpha", "google.rpc.status_pb2", "hypothesis", "pytest",
    "msgspec", "sqlalchemy", "typer", "uvloop", "psutil", "prometheus_client", "cryptography",
)  # fmt: skip
MIN_PATIENCE = 20.0
PATIENCE = 6.0
"""Times what the tests take without a mistake: then they hang, which somebody would notice."""

KILLED, SURVIVED, HUNG = "killed", "survived", "hung"


class Copy:
    """A copy of the tree, so that mistakes are nobody else's, and this process runs in it."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "tree"
        ignored = shutil.ignore_patterns(".*", "__pycache__", "results", "*.egg-info")
        shutil.copytree(ROOT, self.root, ignore=ignored)
        places = [str(self.root / name) for name in (".", *FOLDERS)]
        os.environ["PYTHONPATH"] = os.pathsep.join(places)  # for servers that tests start
        # A mutant has the size of the source, and may have its time: compiled files would lie.
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
        sys.dont_write_bytecode = True
        originals = {str(ROOT / name) for name in (".", *FOLDERS)} | {str(ROOT), ""}
        sys.path[:] = [*places, *(path for path in sys.path if path not in originals)]
        os.chdir(self.root)

    @contextlib.contextmanager
    def having(self, path: str, source: str) -> Iterator[None]:
        """Let the file at `path` be `source` for the block."""
        place = self.root / path
        original = place.read_bytes()
        place.write_text(source, encoding="utf-8")
        try:
            yield
        finally:
            place.write_bytes(original)


def load_libraries() -> None:
    """Import what takes long, once."""
    os.environ["TRITON_INTERPRET"] = "1"  # as tests do, before peft is loaded
    for name in LIBRARIES:
        importlib.import_module(name)
    import hypothesis

    # A busy machine is no mistake of the source.
    hypothesis.settings.register_profile("mutation", deadline=None)
    hypothesis.settings.load_profile("mutation")


def run_tests(tests: Sequence[str], patience: float) -> tuple[str, float]:
    """Return what became of `tests` in a process of their own, and the seconds that it took."""
    begin = time.monotonic()
    child = os.fork()
    if child == 0:
        os.setsid()
        _run(tests)
    while time.monotonic() < begin + patience:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            # Whatever is left of it, such as servers that it started.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)
            code = os.waitstatus_to_exitcode(status)
            return (SURVIVED if code == 0 else KILLED), time.monotonic() - begin
        time.sleep(0.01)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return HUNG, time.monotonic() - begin


def _run(tests: Sequence[str]) -> NoReturn:
    """Run `tests` and end this process with pytest's exit code; MUTATION_OUTPUT shows its words."""
    import pytest

    for name in [name for name in sys.modules if name.partition(".")[0] == "tests"]:
        del sys.modules[name]
    if "MUTATION_OUTPUT" not in os.environ:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
    code = 3
    try:
        options = ["-x", "-q", "-p", "no:cacheprovider", "--hypothesis-seed=0", "--timeout=60"]
        # Of hypothesis, which is loaded already.
        options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]
        code = int(pytest.main([*options, *tests]))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)
