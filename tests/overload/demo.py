"""The server of the campaign, and what it is asked."""

import contextlib
import random
from collections.abc import Iterator
from pathlib import Path

from tests.overload.cores import halves, starting_on
from tests.support.demo import DEMO
from tests.support.load import Ask
from tests.support.server import RunningServer

MAX_RUNNING = 16
MAX_WAITING = 128


def demo_asks(choice: random.Random) -> Ask:
    """Return a prompt, and an adapter or the base."""
    words = ["abandon ->", "cat ->", "window ->", "seven ->"]
    return choice.choice(words), choice.choice([None, "reverse", "upper", "sort", "title"])


@contextlib.contextmanager
def demo_server(folder: Path, *more: str) -> Iterator[RunningServer]:
    """Yield a server of the demo's base, with `more` arguments, on one half of the cores."""
    server = RunningServer(
        folder, DEMO / "base", "--adapters", str(DEMO / "adapters"),
        "--max-running", str(MAX_RUNNING), "--max-waiting", str(MAX_WAITING),
        "--log-format", "json", *more,
    )  # fmt: skip
    cores, _ = halves()
    with contextlib.ExitStack() as running:
        with starting_on(cores):
            running.enter_context(server)
        yield server
