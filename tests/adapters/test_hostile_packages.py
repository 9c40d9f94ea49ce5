"""Hostile packages in the command line: refused in a line, and nothing of them is run or followed.

Ids are those of groups A and B of the corpus of bad inputs.
"""

import io
import json
import subprocess
import sys
from pathlib import Path

from loramux_adapters import PackageError, read_package
from tests.adapters.files import package
from tests.support.hostile import CORPUS, WITNESS, events

PROGRAM = (
    WITNESS
    + """
import contextlib, io, json, typer
from loramux.cli import app

app.app = typer.main.get_command(app.app)  # built once
folder, log = sys.argv[1:]
os.chdir(folder)
COMMANDS = {
    "verify": ["verify", "FILE"], "inspect": ["inspect", "FILE"], "lint": ["lint", "FILE"],
    "unpack": ["unpack", "FILE", "-o", "out"],
    "convert": ["convert", "FILE", "--dtype", "bfloat16", "-o", "out.safetensors"],
    "merge": ["merge", "FILE", "FILE", "-o", "out.safetensors"],
}

def run(arguments):
    sys.argv = ["loramux", *arguments]
    output, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        try:
            code = app.run()
        except SystemExit as end:
            code = end.code or 0
    return code, errors.getvalue()

def commands(name):
    # All of them read a package in the same way.
    some = COMMANDS if name == "good" or int(name) % 4 == 0 else ["verify"]
    for command in some:
        arguments = COMMANDS[command]
        yield command, run([name if word == "FILE" else word for word in arguments])
        # What was written must not be in the way of the next.
        if command == "unpack" and os.path.isdir("out"):
            for entry in os.listdir("out"):
                os.unlink(f"out/{entry}")
            os.rmdir("out")

good = dict(commands("good"))
run(["verify", "bad"]), run(["lint", "missing"])
witness(os.open(log, os.O_WRONLY | os.O_CREAT))
found = {name: dict(commands(name)) for name in os.listdir(".") if name.isdecimal()}
print(json.dumps([good, found]))
"""
)


def test_a_hostile_package_is_one_line_and_is_never_followed(tmp_path: Path) -> None:
    folder = tmp_path / "packages"
    folder.mkdir()
    for number, case in enumerate(CORPUS):
        (folder / str(number)).write_bytes(case.raw)
    (folder / "good").write_bytes(package())
    (folder / "bad").write_bytes(b"PK")
    log = tmp_path / "log"
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder), str(log)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    good, found = json.loads(done.stdout)
    assert all(result == [0, ""] for result in good.values()), good
    for number, case in enumerate(CORPUS):
        message = refusal(case.raw)
        for command, (code, errors) in found[str(number)].items():
            where = f"{case.id}: {command}: {errors}"
            if message is not None:
                assert (code, errors) == (1, f"loramux: {message}\n"), where
            else:  # only a server knows what it does not fit
                assert code in (0, 1) and errors.count("\n") <= 1, where
    assert {event.what for event in events(log.read_text())} == set()


def refusal(raw: bytes) -> str | None:
    """Return why `raw` is no package, whatever the base."""
    try:
        read_package(io.BytesIO(raw), len(raw))
    except PackageError as error:
        return str(error)
    return None


def test_a_witness_notices(tmp_path: Path) -> None:
    program = (
        WITNESS
        + "witness(os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT))\n"
        + "import pickle, socket, subprocess, colorsys\n"
        + "eval('1')\n"
        + "subprocess.run(['true'])\n"
        + "pickle.loads(pickle.dumps(os.getpid))\n"
        + "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(('127.0.0.1', 9))\n"
    )
    log = tmp_path / "log"
    subprocess.run([sys.executable, "-c", program, str(log)], check=True)
    noted = {event.what.partition("\t")[0] for event in events(log.read_text())}
    wanted = {
        "compile",
        "exec",
        "import",
        "subprocess.Popen",
        "pickle.find_class",
        "socket.connect",
    }
    assert wanted <= noted
