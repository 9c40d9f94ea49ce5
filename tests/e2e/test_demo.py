"""The embedded base model and its adapters do their jobs, through a running server."""

import asyncio
import json
import os
import shlex
import signal
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

from loramux import AsyncClient, Generation
from loramux.cli.options import DEFAULT_SERVER
from loramux.cli.program import words
from loramux_server.commands.demo import DEMO, is_free
from tests.support.server import RunningServer

IN_FLIGHT = 96
TWO_ANSWERS = {"sentiment"}  # a guess is right half of the time


async def answer_all(target: str, requests: list[tuple[str, str | None]]) -> list[Generation]:
    """Send (prompt, adapter) requests, many at once, and return the answers in order."""
    gate = asyncio.Semaphore(IN_FLIGHT)
    async with AsyncClient(target) as client:

        async def ask(prompt: str, adapter: str | None) -> Generation:
            async with gate:
                return await client.generate(prompt, adapter=adapter, max_tokens=64, temperature=0)

        return await asyncio.gather(*(ask(prompt, adapter) for prompt, adapter in requests))


async def test_adapters_do_on_held_out_examples_what_the_base_cannot(tmp_path: Path) -> None:
    held_out = json.loads((DEMO / "held_out.json").read_text(encoding="utf-8"))
    assert len(held_out) >= 6
    # In turn, so that every batch is mixed.
    cases = [
        (name, prompt, wanted)
        for examples in zip(*(
            [(name, *example) for example in entry["examples"]] for name, entry in held_out.items()
        ), strict=True)
        for name, prompt, wanted in examples
    ]  # fmt: skip
    with RunningServer(
        tmp_path, DEMO / "base", "--adapters", str(DEMO / "adapters"), "--max-running", "48"
    ) as server:
        by_adapter = await answer_all(server.target, [(p, name) for name, p, _ in cases])
        by_base = await answer_all(server.target, [(p, None) for _, p, _ in cases])
        adapters_in_a_step = (
            server.metrics()["loramux_batch_adapters_sum"]
            / server.metrics()["loramux_batch_adapters_count"]
        )
    hits: dict[str, list[bool]] = defaultdict(list)
    base_hits: dict[str, list[bool]] = defaultdict(list)
    for (name, _, wanted), answer, base_answer in zip(cases, by_adapter, by_base, strict=True):
        hits[name].append(answer.text == f" {wanted}")
        base_hits[name].append(base_answer.text == f" {wanted}")
        assert answer.adapter is not None
        assert answer.adapter.name == name
    for name, found in hits.items():
        assert len(found) == 100
        assert sum(found) >= 95, f"{name}: {sum(found)} of 100"
        assert sum(base_hits[name]) <= (50 if name in TWO_ANSWERS else 5), name
    assert adapters_in_a_step > 1  # although half of the requests are for the base


def demo(*arguments: str) -> "subprocess.Popen[str]":
    environment = os.environ | {"COLUMNS": "120", "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "loramux.cli", "demo", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def test_the_demo_shows_right_answers_and_stops() -> None:
    with demo() as process:
        output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    rows = [line for line in output.splitlines() if line.startswith("│")]
    assert len([row for row in rows if "│ yes" in row]) >= 23
    assert len([row for row in rows if "(base)" in row]) == 2
    assert "adapters per step, average" in output
    *_, title, _, keep, call, serve = output.rstrip().splitlines()
    assert title == "Next:"
    for line, options in (
        (keep, "demo --keep"),
        (call, "generate 'abandon ->' --adapter reverse"),
        (serve, "serve --model PATH_OR_HUB_ID --adapters DIR"),
    ):
        assert line.split("  # ")[0].strip() == f"{words()} {options}"


def test_the_demo_can_go_on_serving() -> None:
    was_free = is_free(DEFAULT_SERVER)
    with demo("--keep") as process:
        assert process.stdout is not None
        target = ""
        for line in process.stdout:
            if line.startswith("Still serving at "):
                target = line.split()[3].rstrip(";")
            if "chat --once" in line:
                break
        # Where commands look by themselves, unless somebody else listens there.
        assert target == DEFAULT_SERVER or (not was_free and f"--server {target}" in line)
        assert is_free(target) is False
        command = shlex.split(line.partition(" chat ")[2])
        answer = subprocess.run(
            [sys.executable, "-m", "loramux.cli", "chat", *command],
            capture_output=True, text=True, timeout=120, check=True,
        )  # fmt: skip
        assert answer.stdout == " ABANDON\n"
        process.send_signal(signal.SIGTERM)  # Ctrl-C is the same
        rest, _ = process.communicate(timeout=120)
    assert process.returncode == 0, rest
    assert rest.rstrip().endswith("Server stopped.")
    assert is_free(target)
