"""Error messages of the command line: with option names, and with hints on what to do."""

import re
from dataclasses import dataclass

import typer

from loramux.errors import LoramuxError, UnavailableError

_NOBODY = ("Connection refused", "Timeout occurred", "No route to host", "Network is unreachable")
"""gRPC's messages if no server listens at an address."""
_UNKNOWN_HOST = ("errors resolving", "DNS resolution failed")
_OPTIONS = {"num_beams": "--beams"}
"""Request fields -> options with a different name."""


@dataclass(slots=True)
class CurrentCommand:
    """The running command, set once its options are parsed."""

    context: typer.Context | None = None


def note_command(context: typer.Context, server: str) -> str:
    """Remember the running command; a callback of its option --server."""
    if isinstance(context.obj, CurrentCommand):
        context.obj.context = context
    return server


def error_message(error: Exception, command: CurrentCommand) -> str:
    """Return the message to print for `error`, which ended a command."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    text, context = str(error), command.context
    if context is None or not isinstance(error, LoramuxError):
        return text
    server = context.params.get("server")
    if isinstance(error, UnavailableError) and not error.reason:
        if any(sign in text for sign in _NOBODY):
            return (
                f"no server answers at {server}; start one with `loramux serve`, or set --server "
                "or LORAMUX_SERVER"
            )
        if text.startswith(_UNKNOWN_HOST):
            return f"the host name of {server} cannot be resolved; set --server or LORAMUX_SERVER"
    if not (error.field and text.startswith(error.field)):
        return text
    return (_option(error.field, context) or error.field) + text.removeprefix(error.field)


def _option(field: str, context: typer.Context) -> str:
    """Return the option of a command that sets the request's `field`; empty if none does."""
    name = re.sub(r"\[\d+\]", "", field).rpartition(".")[2]
    option = _OPTIONS.get(name, f"--{name.replace('_', '-')}")
    return option if any(option in found.opts for found in context.command.params) else ""
