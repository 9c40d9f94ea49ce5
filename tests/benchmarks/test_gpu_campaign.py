"""All benchmarks of a GPU in limited time: what was measured is kept, whatever ends a command."""

import importlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer

from benchmarks.gpu import everything
from benchmarks.gpu.everything import Part
from benchmarks.gpu.record import Record
from tests.support.polling import eventually, is_alive

LONG = 3600


def python(name: str, code: str, most_seconds: float = LONG) -> Part:
    return Part(name, ("-c", code), most_seconds)


def test_what_was_measured_before_a_kill_is_in_the_file(tmp_path: Path) -> None:
    output = tmp_path / "o.json"
    code = f"""
import pathlib, time
from benchmarks.gpu.record import Record
from tests.support.polling import eventually, is_alive
rows = []
record = Record(pathlib.Path({str(output)!r}), ["first", "second"], rows=rows)
with record.part("first"):
    rows.append(1)
with record.part("second"):
    rows.append(2)
    record.write()
    print("measured", flush=True)
    time.sleep({LONG})
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        assert any(line == "measured\n" for line in process.stdout)
        process.send_signal(signal.SIGKILL)
    found = json.loads(output.read_text())
    assert (found["rows"], found["missing"], found["complete"]) == ([1, 2], ["second"], False)
    assert list(found["seconds"]) == ["first"]
    assert list(tmp_path.iterdir()) == [output]


def test_a_part_that_fails_is_reported_and_the_next_one_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "o.json"
    record = Record(output, ["bad", "ended", "good"])
    with record.part("bad"):
        raise MemoryError("none is left")
    with record.part("ended"):
        raise SystemExit("a request failed")
    with record.part("good"):
        pass
    found = json.loads(output.read_text())
    assert found["errors"] == {
        "bad": "MemoryError: none is left", "ended": "SystemExit: a request failed",
    }  # fmt: skip
    assert not found["missing"] and not found["complete"] and record.has_failed
    assert "bad: 0.0 s, MemoryError: none is left" in capsys.readouterr().out


def test_commands_run_until_the_time_is_over_and_each_ending_is_reported(tmp_path: Path) -> None:
    writes = "import sys, pathlib; pathlib.Path(sys.argv[2]).write_text('{}')"
    folder, child = tmp_path / "results", tmp_path / "child"
    starts = f"""
import pathlib, subprocess
with subprocess.Popen(["sleep", "{LONG}"]) as process:
    pathlib.Path({str(child)!r}).write_text(str(process.pid))
"""
    endings = everything.run(
        [python("good", writes), python("bad", "raise SystemExit(3)"), python("slow", starts, 1)],
        folder,
        time.monotonic() + LONG,
    )
    results = ["done", "ended with exit code 3", "ended after 1 s: time limit reached"]
    assert [ending.result for ending in endings] == results
    assert (folder / "good.json").read_text() == "{}"
    found = json.loads((folder / "everything.json").read_text())
    assert [part["result"] for part in found["parts"]] == results
    assert found["errors"].keys() == {"bad", "slow"}
    assert not found["complete"]
    # What it has started has to end as well, or it would hold the device.
    if child.exists() and (pid := child.read_text()):
        assert eventually(lambda: not is_alive(int(pid)))


def test_a_command_for_which_no_time_is_left_is_not_started(tmp_path: Path) -> None:
    (ending,) = everything.run([python("late", "")], tmp_path, time.monotonic() + 1)
    assert ending.result == "not started: no time left"
    assert not ending.is_good
    assert not json.loads((tmp_path / "everything.json").read_text())["complete"]


@pytest.mark.parametrize("name", everything.NAMES)
def test_every_command_knows_the_arguments_that_it_is_given(name: str, tmp_path: Path) -> None:
    pytest.importorskip("triton")  # there is none for macOS
    (part,) = (part for part in everything.parts(tmp_path, "vllm", "tiny") if part.name == name)
    _, module, *arguments = part.command
    app = typer.Typer()
    app.command()(importlib.import_module(module).main)
    command = typer.main.get_command(app)
    context = command.make_context(module, [*arguments, "--output", str(tmp_path / "o.json")])
    assert context.params["output"] == tmp_path / "o.json"


def test_only_and_skip_choose_among_all_commands(tmp_path: Path) -> None:
    with pytest.raises(typer.BadParameter, match="'tunes' is none of tune, end_to_end"):
        everything.main(tmp_path, only=["tunes"])
    with pytest.raises(SystemExit):
        everything.main(tmp_path, seconds=1, peer=tmp_path, skip=["tune"], only=["tune", "check"])
    found = json.loads((tmp_path / "everything.json").read_text())
    assert [part["name"] for part in found["parts"]] == ["check"]
