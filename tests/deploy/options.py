"""The commands of the command line, and the options that each of them takes."""

from functools import cache
from typing import Any

import typer

from loramux.cli.app import app


@cache
def commands() -> dict[tuple[str, ...], frozenset[str]]:
    """Return the options of every command, by its words, such as `("quarantine", "ls")`."""
    found: dict[tuple[str, ...], frozenset[str]] = {}

    def visit(command: Any, words: tuple[str, ...]) -> None:
        names = [
            name
            for parameter in command.params
            if parameter.param_type_name == "option"
            for name in (*parameter.opts, *parameter.secondary_opts)
        ]
        found[words] = frozenset(names)
        for word, inner in getattr(command, "commands", {}).items():
            visit(inner, (*words, word))

    visit(typer.main.get_command(app), ())
    return found


def options_of(*words: str) -> frozenset[str]:
    """Return the options of `loramux WORDS`."""
    return commands()[words]
