"""The results of a command so far, in a file that is complete at any time."""

import json
import os
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil


class Record:
    """The result of a command that consists of parts, any of which may fail or not be reached.

    If the process is killed, the results so far are in the file.
    """

    def __init__(self, output: Path | None, parts: Sequence[str], /, **facts: object) -> None:
        """Start with `facts` and all of `parts` missing; None as `output` writes nothing."""
        self._output = output
        self._missing = list(parts)
        self._seconds: dict[str, float] = {}
        self._errors: dict[str, str] = {}
        self._facts = dict(facts)
        self.write()

    def __setitem__(self, name: str, value: object) -> None:
        """Add a fact; a mutable value is added once and rewritten with each update."""
        self._facts[name] = value
        self.write()

    @property
    def has_failed(self) -> bool:
        """Whether a part ended with an error."""
        return bool(self._errors)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Measure a part in the block. An error in it is recorded and does not propagate."""
        begin = time.perf_counter()
        try:
            yield
        except (Exception, SystemExit) as error:
            traceback.print_exc()
            self._errors[name] = f"{type(error).__name__}: {error}"
        self._seconds[name] = round(time.perf_counter() - begin, 2)
        if name in self._missing:
            self._missing.remove(name)
        ending = f", {self._errors[name]}" if name in self._errors else ""
        say(f"{name}: {self._seconds[name]:.1f} s{ending}")
        self.write()

    def write(self) -> None:
        """Update the file."""
        if self._output:
            content: dict[str, Any] = {
                **self._facts,
                "complete": not (self._missing or self._errors),
                "missing": self._missing,
                "errors": self._errors,
                "seconds": self._seconds,
            }
            replace_file(self._output, json.dumps(content, indent=1) + "\n")


def replace_file(path: Path, text: str) -> None:
    """Write `text` to the file at `path`, atomically."""
    beside = path.with_name(f".{path.name}.new")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)


def say(line: str) -> None:
    """Print `line` with the seconds since the start of this process."""
    since = time.time() - psutil.Process(os.getpid()).create_time()
    print(f"[{since:6.1f} s] {line}", flush=True)
