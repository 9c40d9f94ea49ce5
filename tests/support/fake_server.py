"""A real frontend, in a process of its own, before an engine that has no model.

It is there within a second, and does what no engine should when a prompt says so.
"""

import json
import random
import sys
from pathlib import Path

from tests.support.load import Ask
from tests.support.server import RunningServer

VOCAB = 256
CONTEXT = 4096
# What a prompt that begins with one of these does to the engine.
DIES, HANGS, RAISES, STOPS, EXHAUSTS = 240, 241, 242, 243, 244

FAKE_ENGINE = "tests.support.fake_engine"
ENGINE = """#!{python}
import sys
sys.path[:0] = {path}
del sys.argv[1:3]  # -m and the module of the real one
from {module} import main
main()
"""

SERVE = """
import sys
sys.executable = sys.argv.pop(1)
from loramux.cli import main
sys.exit(main())
"""


def answer(prompt: list[int], count: int) -> tuple[int, ...]:
    """Return what the engine makes of `prompt`."""
    return tuple((sum(prompt) + 7 * position) % DIES for position in range(count))


def asked(choice: random.Random) -> Ask:
    """Return something that does the engine no harm."""
    return tuple(choice.randrange(DIES) for _ in range(5)), None


def asked_shortly(choice: random.Random) -> Ask:
    """Return one token that an engine with a small vocabulary has, too."""
    return (choice.randrange(64),), None


def answered(ask: Ask, count: int) -> tuple[int, ...]:
    """Return what comes of it."""
    prompt = ask[0]
    assert not isinstance(prompt, str)
    return answer(list(prompt), count)


def write_engine(
    folder: Path, module: str = FAKE_ENGINE, *, step_seconds: float = 0.005, **more: float
) -> tuple[Path, Path]:
    """Write what the engine is told in place of a model, and a program to start in its place."""
    folder.mkdir(parents=True, exist_ok=True)
    state, engine = folder / "engine.json", folder / "engine"
    state.write_text(json.dumps({"step_seconds": step_seconds, **more}))
    engine.write_text(ENGINE.format(python=sys.executable, path=sys.path, module=module))
    engine.chmod(0o700)
    return state, engine


class FakeServer(RunningServer):
    """`loramux serve` whose engine makes a token every `step_seconds` for each request."""

    def __init__(
        self, folder: Path, *arguments: str, module: str = FAKE_ENGINE,
        step_seconds: float = 0.005, environment: dict[str, str] | None = None, **more: float,
    ) -> None:  # fmt: skip
        """Prepare; `module` has the engine's `main`, which is told times in a file."""
        state, engine = write_engine(folder, module, step_seconds=step_seconds, **more)
        super().__init__(folder, state, *arguments, **(environment or {}))
        self._command[1:3] = ["-c", SERVE, str(engine)]
