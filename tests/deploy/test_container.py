"""The image is made of what there is, and runs what there is."""

import json
import re
import tomllib
from pathlib import Path

from tests.deploy.options import commands

ROOT = Path(__file__).parents[2]
CONTAINERFILE = (ROOT / "deploy" / "container" / "Containerfile").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LINES = [
    line
    for line in CONTAINERFILE.replace("\\\n", " ").splitlines()
    if line and not line.startswith("#")
]


def instructions(name: str) -> list[str]:
    return [line.partition(" ")[2] for line in LINES if line.split(" ", 1)[0] == name]


def test_extras_are_those_of_the_package() -> None:
    (extras,) = [line for line in instructions("ARG") if line.startswith("EXTRAS=")]
    asked = set(extras.partition("=")[2].split(","))
    assert asked <= PROJECT["optional-dependencies"].keys()
    assert {"server", "gateway"} <= asked


def test_torch_is_of_its_own_index_alone() -> None:
    (install,) = [line for line in instructions("RUN") if "TORCH_INDEX" in line]
    steps = [step.split() for step in install.split("&&")]
    (torch,) = [step for step in steps if '"${TORCH_INDEX}"' in step]
    assert torch[-3:] == ["--index-url", '"${TORCH_INDEX}"', '"${TORCH}"']
    (asked,) = [line for line in instructions("ARG") if line.startswith("TORCH=")]
    assert asked.partition("=")[2].strip('"') in PROJECT["optional-dependencies"]["server"]
    assert steps.index(torch) < next(i for i, s in enumerate(steps) if '".[${EXTRAS}]"' in s)
    assert "--extra-index-url" not in install


def test_the_context_has_what_is_copied_and_what_the_build_needs() -> None:
    let_in = {
        line.removeprefix("!")
        for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
        if line.startswith("!")
    }
    copied = {
        source.partition("/")[0]
        for line in instructions("COPY")
        if not line.startswith("--from")
        for source in line.split()[:-1]
    }
    assert copied == let_in
    assert all((ROOT / name).exists() for name in let_in)
    # What hatchling reads beside the packages.
    assert {PROJECT["readme"], *PROJECT["license-files"], "pyproject.toml"} <= let_in


def test_it_runs_as_nobody_in_particular_with_room_for_its_files() -> None:
    assert instructions("USER") == ["10001:10001"]
    (volumes,) = instructions("VOLUME")
    folders = json.loads(volumes)
    assert folders == ["/var/lib/loramux", "/var/cache/loramux"]
    environment = dict(re.findall(r"(\w+)=(\S+)", instructions("ENV")[-1]))
    for name in ("HOME", "HF_HOME", "NUMBA_CACHE_DIR", "TRITON_CACHE_DIR"):
        assert environment[name].startswith("/var/cache/loramux")
    assert environment["XDG_DATA_HOME"] + "/loramux" == "/var/lib/loramux"


def test_its_commands_are_there() -> None:
    assert instructions("ENTRYPOINT") == ['["loramux"]']
    (health,) = instructions("HEALTHCHECK")
    program, *command = json.loads(health.partition(" CMD ")[2])
    assert program == "loramux"
    assert tuple(command) in commands()
    assert instructions("STOPSIGNAL") == ["SIGTERM"]
