"""`loramux demo`: a real server, one mixed batch, and what it did."""

import asyncio
import contextlib
import json
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.table import Table

from loramux import AsyncClient, Generation
from loramux.cli.options import DEFAULT_SERVER
from loramux.cli.program import words

DEMO = Path(__file__).parents[1] / "demo"
"""The embedded base model and its adapters; made by examples/demo_model."""
EXAMPLES_EACH = 2
START_SECONDS = 120


@dataclass(frozen=True)
class Example:
    """A prompt, and the expected output of its adapter; None for the base."""

    adapter: str | None
    prompt: str
    wanted: str | None


def demo(
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep serving afterwards, until Ctrl-C.")
    ] = False,
) -> None:
    """Run a server with the embedded model and show a mixed batch."""
    # Handled like Ctrl-C, so that the server is stopped, too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    console = Console(markup=False, emoji=False)
    examples = held_out_examples(EXAMPLES_EACH)
    with tempfile.TemporaryDirectory(prefix="loramux-demo-") as folder:
        begin = time.monotonic()
        listen = DEFAULT_SERVER if keep and is_free(DEFAULT_SERVER) else "127.0.0.1:0"
        with _server(Path(folder), listen) as addresses:
            console.print(f"Server ready after {time.monotonic() - begin:.1f} s.")
            answers, cold = asyncio.run(_ask_all(addresses["grpc"], examples))
            console.print(_answers_table(examples, answers))
            _, warm = asyncio.run(_ask_all(addresses["grpc"], examples))
            console.print(
                f"{len(examples)} requests for {len({e.adapter for e in examples} - {None})} "
                f"adapters and the base, sent together, took {cold:.2f} s with every adapter on "
                f"disk,\nand {warm:.2f} s the second time.\n"
            )
            console.print(_metrics_table(addresses["metrics"]))
            if keep:
                _wait(console, addresses)
    console.print("Server stopped.")
    if not keep:
        _print_commands(console, "Next:", (
            f"{words()} demo --keep  # keeps the server running, for the following",
            f"{words()} generate 'abandon ->' --adapter reverse",
            f"{words()} serve --model PATH_OR_HUB_ID --adapters DIR  # your model and adapters",
        ))  # fmt: skip


def held_out_examples(each: int) -> list[Example]:
    """Return `each` held-out examples per adapter, and as many for the base."""
    found = json.loads((DEMO / "held_out.json").read_text(encoding="utf-8"))
    examples = []
    for name, entry in found.items():
        different = {wanted: prompt for prompt, wanted in reversed(entry["examples"])}
        chosen = list(reversed(different.items()))[:each]
        examples += [Example(name, prompt, wanted) for wanted, prompt in chosen]
    return examples + [Example(None, example.prompt, None) for example in examples[:each]]


def is_free(address: str) -> bool:
    """Return whether a server can listen at `address`."""
    host, port = address.rsplit(":", 1)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, int(port)))
        except OSError:
            return False
    return True


@contextlib.contextmanager
def _server(folder: Path, listen: str) -> Iterator[dict[str, str]]:
    """Run `loramux serve` on the embedded model and yield its addresses."""
    ready = folder / "ready.json"
    command = [
        sys.executable, "-m", "loramux.cli", "serve",
        "--model", str(DEMO / "base"), "--adapters", str(DEMO / "adapters"),
        "--listen", listen, "--metrics", "127.0.0.1:0",
        "--ready-file", str(ready), "--store", str(folder / "store"),
    ]  # fmt: skip
    log = folder / "server.log"
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output) as run:
        try:
            deadline = time.monotonic() + START_SECONDS
            while not ready.exists():
                if run.poll() is not None or time.monotonic() > deadline:
                    raise OSError(f"the server did not start:\n{log.read_text()}")
                time.sleep(0.05)
            yield json.loads(ready.read_text(encoding="utf-8"))
        finally:
            run.terminate()


async def _ask_all(target: str, examples: list[Example]) -> tuple[list[Generation], float]:
    """Send every example at once; return the answers and the seconds until the last."""
    async with AsyncClient(target) as client:
        begin = time.monotonic()
        answers = await asyncio.gather(*(
            client.generate(
                example.prompt, adapter=example.adapter, max_tokens=48, temperature=0
            )
            for example in examples
        ))  # fmt: skip
        return answers, time.monotonic() - begin


def _answers_table(examples: list[Example], answers: list[Generation]) -> Table:
    table = Table(title="One batch, many adapters", title_justify="left")
    for heading in ("adapter", "prompt", "answer", "right?"):
        table.add_column(heading)
    for heading in ("first", "total"):
        table.add_column(heading, justify="right", no_wrap=True)
    for example, answer in zip(examples, answers, strict=True):
        text = answer.text.strip()
        table.add_row(
            example.adapter or "(base)",
            example.prompt,
            text,
            "" if example.wanted is None else "yes" if text == example.wanted else "no",
            f"{1e3 * answer.timing.time_to_first_token_seconds:.0f} ms",
            f"{1e3 * answer.timing.total_seconds:.0f} ms",
        )
    return table


def _metrics_table(target: str) -> Table:
    with urllib.request.urlopen(f"http://{target}/metrics", timeout=10) as page:
        text = page.read().decode()
    samples = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    steps = samples["loramux_step_seconds_count",]
    table = Table(title=f"From http://{target}/metrics", title_justify="left")
    table.add_column("metric")
    table.add_column("value", justify="right")
    for what, value in (
        ("engine steps", f"{steps:.0f}"),
        ("requests per step, average", f"{samples['loramux_batch_requests_sum',] / steps:.1f}"),
        ("adapters per step, average", f"{samples['loramux_batch_adapters_sum',] / steps:.1f}"),
        ("adapters on the device", f"{samples['loramux_adapters_resident', 'device']:.0f}"),
        ("adapter memory in use", f"{samples['loramux_adapter_bytes', 'device'] / 1e6:.1f} MB"),
        ("adapter cache hits", f"{samples['loramux_adapter_cache_hits_total', 'device']:.0f}"),
        ("adapter cache misses", f"{samples['loramux_adapter_cache_misses_total', 'device']:.0f}"),
        ("adapter cache evictions", f"{samples['loramux_adapter_evictions_total', 'device']:.0f}"),
    ):
        table.add_row(what, value)
    return table


def _wait(console: Console, addresses: dict[str, str]) -> None:
    target, option = addresses["grpc"], ""
    if target != DEFAULT_SERVER:
        console.print(
            f"{DEFAULT_SERVER}, where commands look for a server, is in use. This server listens "
            f"at {target}, so they need --server.\n"
        )
        option = f" --server {target}"
    title = f"Still serving at {target}; stop it with Ctrl-C. From another terminal:"
    _print_commands(console, title, (
        f"{words()} generate 'abandon ->' --adapter reverse{option}",
        f"{words()} chat --once --adapter upper abandon{option}",
        f"{words()} ls{option}",
        f"curl http://{addresses['metrics']}/metrics",
    ))  # fmt: skip
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            time.sleep(3600)


def _print_commands(console: Console, title: str, lines: tuple[str, ...]) -> None:
    """Print commands to type, without wrapping lines."""
    console.print(f"{title}\n")
    for line in lines:
        console.print(f"  {line}", soft_wrap=True, highlight=False)
