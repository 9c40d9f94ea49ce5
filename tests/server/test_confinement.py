"""What confines a process on Linux, tried from within, past Python's audit hook."""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from loramux_server.chat.messages import (
    Conversation,
    Message,
    Render,
    Rendered,
    TemplateTokens,
    decode_answer,
)
from loramux_server.chat.messages import Setup as ChatSetup
from loramux_server.chat.messages import encode as encode_chat
from loramux_server.confinement.child import ExitCause
from loramux_server.confinement.process import ConfinedProcess, LostAnswerError
from loramux_server.forms.form import Form, FormKind
from loramux_server.forms.messages import Allowed, Begin, decode_from_worker
from loramux_server.forms.messages import encode as encode_form
from loramux_server.images.messages import Prepared
from loramux_server.images.messages import Setup as ImageSetup
from loramux_server.images.messages import decode_answer as decode_image
from loramux_server.images.messages import encode as encode_image
from tests.support.models import byte_tokenizer
from tests.support.pictures import picture, saved
from tests.support.probed_worker import PROBES
from tests.support.texts import setup_of
from tests.support.vision import save_vision_base

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the kernel confines on Linux")

SECONDS = 60.0
TALK = encode_chat(
    Render("{{ messages[0].content | tojson }}", Conversation([Message("user", "hi")]), True)
)
CHAT = encode_chat(ChatSetup(TemplateTokens(("<s>",)), cpu_seconds=5.0))


def system_call(number: int, *arguments: "int | ctypes._CArgObject | None") -> int:
    return int(ctypes.CDLL(None).syscall(number, *arguments))


KILLS = ctypes.c_uint32(0x80000000)
SECCOMP = system_call(317 if os.uname().machine == "x86_64" else 277, 2, 0, ctypes.byref(KILLS))
LANDLOCK = system_call(444, None, 0, 1)
"""What the kernel says of itself: 0 if it has filters that end a process; the version, or -1."""
needs_seccomp = pytest.mark.skipif(SECCOMP != 0, reason="no seccomp here")
needs_landlock = pytest.mark.skipif(LANDLOCK < 1, reason="no Landlock here")


@dataclass(frozen=True)
class Kind:
    module: str
    setup: Callable[[Path], bytes]
    message: bytes
    is_well: Callable[[bytes], bool]


def image_setup(folder: Path) -> bytes:
    save_vision_base("qwen2.5-vl", folder)
    return encode_image(ImageSetup(str(folder), 1_000_000, cpu_seconds=5.0))


KINDS = {
    "chat": Kind(
        "loramux_server.chat.worker",
        lambda _: CHAT,
        TALK,
        lambda answer: isinstance(decode_answer(answer), Rendered),
    ),
    "forms": Kind(
        "loramux_server.forms.worker",
        lambda _: encode_form(setup_of(byte_tokenizer())),
        encode_form(Begin(1, Form(FormKind.REGEX, "[0-9]{3}"), [])),
        lambda answer: isinstance(decode_from_worker(answer), Allowed),
    ),
    "images": Kind(
        "loramux_server.images.worker",
        image_setup,
        saved(picture(), "JPEG"),
        lambda answer: isinstance(decode_image(answer), Prepared),
    ),
}


def probed(kind: Kind, setup: bytes, **variables: str) -> ConfinedProcess:
    return ConfinedProcess(
        "tests.support.probed_worker", setup, "is probed", {"PROBED": kind.module, **variables}
    )


@needs_seccomp
@pytest.mark.parametrize("name", KINDS)
async def test_native_code_finds_nothing_to_use_and_work_goes_on(name: str, tmp_path: Path) -> None:
    kind = KINDS[name]
    process = probed(kind, kind.setup(tmp_path))
    deadly = {b"execve", b"ptrace"}
    assert kind.is_well(await process.ask(kind.message, SECONDS))
    (child,) = [each for each in psutil.Process().children() if "probed" in str(each.cmdline())]
    for probe in PROBES.keys() - deadly - {b"a thread"}:
        assert (probe, await process.ask(probe, SECONDS)) == (probe, b"EPERM")
    assert await process.ask(b"a thread", SECONDS) == b""
    assert kind.is_well(await process.ask(kind.message, SECONDS))
    assert child.is_running()
    with pytest.raises(LostAnswerError, match=f"exit code {-signal.SIGSYS}") as lost:
        await process.ask(b"execve", SECONDS)
    assert lost.value.exit_cause is ExitCause.SYSTEM_CALL
    await process.end()


@needs_seccomp
async def test_what_only_an_attack_does_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    process = probed(KINDS["chat"], CHAT)
    with pytest.raises(LostAnswerError):
        await process.ask(b"ptrace", SECONDS)
    assert caplog.messages == ["the process that is probed made a forbidden system call"]
    assert KINDS["chat"].is_well(await process.ask(TALK, SECONDS))
    await process.end()


@needs_seccomp
async def test_where_the_kernel_refuses_work_goes_on_and_one_line_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    process = probed(KINDS["chat"], CHAT, REFUSING="1")
    for _ in range(2):
        assert KINDS["chat"].is_well(await process.ask(TALK, SECONDS))
        await process.end()
    (line,) = caplog.messages
    assert line == (
        "the process that is probed is sandboxed without no_new_privs (Operation not permitted), "
        "Landlock (Function not implemented), seccomp (Operation not permitted)"
    )


def run(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


ALONE = """
import os, socket
from loramux_server.confinement import kernel, landlock
server, client = socket.create_server(("127.0.0.1", 0)), socket.socket()
kernel.set_no_new_privs()
landlock.confine()
for tried in (
    lambda: open("/etc/hostname"),
    lambda: os.listdir("/"),
    lambda: open("/tmp/made-by-a-confined-process", "w"),
    lambda: client.connect(server.getsockname()) if VERSION >= 4 else os.listdir("/"),
    lambda: os.kill(os.getppid(), 0) if VERSION >= 6 else os.listdir("/"),
):
    try:
        tried()
    except PermissionError:
        print("refused", end=" ")
"""


@needs_landlock
def test_landlock_alone_keeps_files_ports_and_processes_away() -> None:
    assert run(f"VERSION = {LANDLOCK}{ALONE}") == "refused " * 5


EARLY = """
import ctypes, threading
from loramux_server.confinement.lockdown import lock_down
open_file, begin, found = ctypes.CDLL(None).open, threading.Event(), []
def late():
    begin.wait()
    found.append(open_file(b"/", 0))
thread = threading.Thread(target=late, daemon=True)
thread.start()
missing = lock_down(1 << 36, "a thread")
begin.set()
thread.join()
print(found, missing)
"""


@needs_seccomp
@needs_landlock
def test_a_thread_that_began_earlier_is_confined_too() -> None:
    landlock = ["Landlock (1 threads were already running)"]
    assert run(EARLY) == f"[-1] {[] if LANDLOCK >= 8 else landlock}\n"
