"""Hostile packages, and a witness of what a process does with them."""

import json
from dataclasses import dataclass
from typing import Any, cast

from tests.adapters import test_peft_config, test_tensor_file
from tests.adapters.files import TENSORS, data, header, manifest, package, tensor_file

INVALID_CONFIG = "INVALID_ADAPTER_CONFIG"


@dataclass(frozen=True)
class Hostile:
    """A package that must be refused."""

    id: str
    raw: bytes
    reason: str


def with_notes(**notes: Any) -> bytes:
    """Return a package whose manifest has `notes`."""
    return tensor_file(header(TENSORS, {"loramux.manifest": manifest(**notes)}), data())


def _named(corpus: Any) -> list[tuple[str, Any]]:
    return [(cast(str, case.id), case.values) for case in corpus]


def _packaged(config: Any) -> bytes:
    try:
        json.dumps(config)
    except (ValueError, RecursionError):
        return b""
    return package(config=config)


CORPUS: list[Hostile] = [
    *(Hostile(id, raw, reason) for id, (raw, reason, _) in _named(test_tensor_file.CORPUS)),
    *(
        Hostile(
            id, raw, "INVALID_ADAPTER_CONFIG" if b"NaN" in raw or b"Infinity" in raw else reason
        )
        for id, (config, reason, _) in _named(test_peft_config.CORPUS)
        if (raw := _packaged(config))
    ),
    Hostile("B27-template-of-64-KiB", with_notes(chat_template="x" * 65537), INVALID_CONFIG),
    Hostile("B27-template-a-number", with_notes(chat_template=7), INVALID_CONFIG),
    Hostile("generation-of-code", with_notes(generation={"__import__": "os"}), INVALID_CONFIG),
    Hostile("generation-out-of-range", with_notes(generation={"top_p": 7}), INVALID_CONFIG),
    Hostile("generation-of-400-digits", with_notes(generation={"top_p": 10**400}), INVALID_CONFIG),
    Hostile("an-extra-file", with_notes(files={"tokenizer.py": "1 / 0"}), INVALID_CONFIG),
]

FORBIDDEN = (
    "compile", "exec", "import", "socket.connect", "subprocess.Popen", "os.system", "os.exec",
    "os.spawn", "os.posix_spawn", "os.fork", "os.forkpty", "pickle.find_class", "marshal.loads",
    "ctypes.dlopen", "shutil.unpack_archive", "urllib.Request",
)  # fmt: skip

WITNESS = f"""
import os, sys, time

def witness(descriptor):
    def note(event, arguments):
        if event in {FORBIDDEN!r}:
            what = str(arguments[0])[:80] if arguments else ""
            line = f"{{time.monotonic()}}\\t{{os.getpid()}}\\t{{event}}\\t{{what!a}}\\n"
            try:
                os.write(descriptor, line.encode())
            except OSError:  # in a process that may write to no file
                pass
    sys.addaudithook(note)
"""
"""A program that notes what must not happen: when, in which process, and what."""


@dataclass(frozen=True)
class Event:
    """Something of FORBIDDEN."""

    moment: float
    pid: int
    what: str


def events(log: str) -> list[Event]:
    """Return what a witness noted."""
    lines = (line.split("\t", 2) for line in log.splitlines())
    return [Event(float(moment), int(pid), what) for moment, pid, what in lines]
