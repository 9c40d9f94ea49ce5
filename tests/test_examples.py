"""What the pages and the examples say is so."""

import doctest
import json
import re
import shlex
from pathlib import Path

import pytest

from examples import two_adapters
from examples.demo_model.model import CHAT_TEMPLATE
from examples.demo_model.tasks import TASKS
from loramux.cli.app import app
from loramux_server.commands.demo import DEMO
from tests.support.server import RunningServer

ROOT = Path(__file__).parents[1]


def test_python_and_commands_of_the_readme_print_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    page = (ROOT / "README.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (_, commands) = re.findall(r"```console\n(.*?)```", page, re.DOTALL)
    with RunningServer(tmp_path, DEMO / "base", "--adapters", str(DEMO / "adapters")) as server:
        monkeypatch.chdir(ROOT)
        monkeypatch.setenv("LORAMUX_SERVER", server.target)
        steps = re.findall(r"^\$ loramux (.*)\n((?:[^$].*\n)*)", commands, re.MULTILINE)
        assert len(steps) >= 6
        for command, printed in steps:
            app(shlex.split(command, comments=True), standalone_mode=False)
            assert (command, capfd.readouterr().out) == (command, printed)
        block = block.replace("localhost:50051", server.target)
        block = block.replace("path/to/peft_folder", str(DEMO / "adapters" / "reverse"))
        example = doctest.DocTestParser().get_doctest(block, {}, "README.md", "README.md", 0)
        assert len(example.examples) >= 6
        said: list[str] = []
        results = doctest.DocTestRunner().run(example, out=said.append)
    assert results.failed == 0, "".join(said)


def test_two_adapters_are_trained_served_and_merged(tmp_path: Path) -> None:
    with RunningServer(tmp_path / "server", DEMO / "base") as server:
        answers = two_adapters.run(
            server.target, tmp_path, examples=240, epochs=2, asked=8, threads=1
        )
        names = {adapter.name for adapter in server.client().adapters.list()}
    assert names == {*two_adapters.ADAPTERS, two_adapters.MERGED}
    assert len({answer.digest for answer in answers}) == 3
    assert len(answers) == 8 + 8 + 16
    texts = {name: [answer.text for answer in answers if answer.adapter == name] for name in names}
    # So few steps teach how an answer looks, not yet which is right.
    assert set(texts["opinions"]) <= {"positive", "negative"}
    assert sum(text.endswith("ay") for text in texts["pig-latin"]) >= 6


def pages(*folders: str) -> list[Path]:
    """Return all pages in these folders."""
    return [page for folder in folders for page in (ROOT / folder).rglob("*.md")]


def test_links_of_the_pages_lead_somewhere() -> None:
    folders = ("docs", "server", "client", "benchmarks", "deploy", "examples", ".github")
    for page in [ROOT / "README.md", *pages(*folders)]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page}: {target}"


def test_pages_on_the_architecture_name_files_that_exist() -> None:
    package = ROOT / "server/loramux_server"
    for page in pages("server"):
        for name in re.findall(r"`([\w/]+\.py)`", page.read_text()):
            assert (package / name).exists(), f"{page}: {name}"


def test_held_out_examples_are_what_their_tasks_say() -> None:
    held_out = json.loads((DEMO / "held_out.json").read_text())
    for name, entry in held_out.items():
        for prompt, wanted in entry["examples"]:
            assert TASKS[name].answer(prompt.removesuffix(" ->")) == wanted


def test_the_embedded_base_has_the_chat_template_of_its_source() -> None:
    assert (DEMO / "base" / "chat_template.jinja").read_text() == CHAT_TEMPLATE.read_text()
