"""All commands of the command line."""

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from loramux import __version__
from loramux._access import (
    CA_VARIABLE,
    CERT_KEY_VARIABLE,
    CERT_VARIABLE,
    KEY_VARIABLE,
    PLAINTEXT_VARIABLE,
)
from loramux.cli import (
    adapters,
    alias,
    answer,
    batch,
    bench,
    chat,
    checks,
    classify,
    embed,
    gateway,
    generate,
    health,
    inspection,
    merging,
    packages,
    quarantine,
    residency,
    signing,
    top,
    train,
    transforms,
)
from loramux.cli.error_messages import CurrentCommand, error_message
from loramux.cli.headings import HeadedGroup
from loramux.errors import LoramuxError
from loramux_adapters import PackageError
from loramux_adapters.extras import install_command

KeyFile = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help=f"File with the API key to send; default: {KEY_VARIABLE}."),
]
Ca = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help=f"PEM file of the CA that signed the server's certificate; default: {CA_VARIABLE}.",
    ),
]
Cert = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help=f"PEM file of the client certificate to present; default: {CERT_VARIABLE}.",
    ),
]
CertKey = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help=f"PEM file of the private key for --cert; default: {CERT_KEY_VARIABLE}.",
    ),
]
Plaintext = Annotated[
    bool, typer.Option("--plaintext", help="Allow sending the key to another machine without TLS.")
]

_WEIGHT_COMMANDS = frozenset({"pack", "inspect", "verify", "lint", "convert", "diff", "merge"})

_ITS_OWN = "sqlalchemy"
"""A package that only the extra `server` installs: without it there is no server."""
_OF_THE_SERVER = frozenset({
    "loramux_server", "msgspec", "platformdirs", "prometheus_client", _ITS_OWN
})  # fmt: skip
"""Packages that the server's commands import and an installation of only the client lacks."""

app = typer.Typer(
    name="loramux",
    cls=HeadedGroup,
    help="Serve one base model with many LoRA adapters, and call it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _server_command(name: str, summary: str) -> None:
    """Add a command of the server, or a group of commands.

    If the server is not installed, the command says how to install it, and `summary` is its help.
    """
    try:
        if importlib.util.find_spec(_ITS_OWN) is None:
            raise ModuleNotFoundError(name=_ITS_OWN)
        module = importlib.import_module(f"loramux_server.commands.{name}")
    except ImportError as error:
        app.command(
            name,
            context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
        )(_missing(name, summary, error))
    else:
        if hasattr(module, "app"):
            app.add_typer(module.app, name=name)
        else:
            app.command(name, cls=getattr(module, "COMMAND", None))(getattr(module, name))


def _missing(name: str, summary: str, error: ImportError) -> Callable[[], None]:
    """Return a command that replaces one whose import failed with `error`."""
    is_bare = (error.name or "").partition(".")[0] in _OF_THE_SERVER

    def missing() -> None:
        if not is_bare:  # a broken installation; installing it again may not help
            raise error
        print(f"loramux: {name} needs the server: {install_command('server')}", file=sys.stderr)
        raise typer.Exit(1)

    # At the beginning, since the list of commands truncates long help.
    why = "Needs the extra `server`" if is_bare else "Cannot be imported"
    missing.__doc__ = f"{why}: {summary[:1].lower()}{summary[1:]}"
    return missing


def _version(value: bool) -> None:
    if value:
        print(f"loramux {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version and exit."
    ),
    key_file: KeyFile = None,
    ca: Ca = None,
    cert: Cert = None,
    cert_key: CertKey = None,
    plaintext: Plaintext = False,
) -> None:
    """Serve one base model with many LoRA adapters, and call it."""
    # Where all clients look. The key itself is not an option, since the process list would show it.
    if key_file:
        os.environ[KEY_VARIABLE] = key_file.read_text(encoding="utf-8").strip()
    if ca:
        os.environ[CA_VARIABLE] = str(ca)
    if cert:
        os.environ[CERT_VARIABLE] = str(cert)
    if cert_key:
        os.environ[CERT_KEY_VARIABLE] = str(cert_key)
    if plaintext:
        os.environ[PLAINTEXT_VARIABLE] = "1"
    if context.invoked_subcommand in _WEIGHT_COMMANDS and "numpy" not in sys.modules:
        # numpy reads it when it is loaded. Its threads spin-wait on the thin matrices of adapters,
        # which takes twenty times as long as one thread if the cores are busy.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


_server_command("serve", "Serve a base model and adapters.")
_server_command("demo", "Run the embedded model.")
_server_command("keys", "Manage the API keys of a server.")
_server_command("tenants", "Manage the limits of tenants.")
app.command("generate")(generate.generate)
app.command("chat")(chat.chat)
app.command("classify")(classify.classify)
app.command("answer")(answer.answer)
app.command("embed")(embed.embed)
app.command("batch")(batch.batch)
app.command("gateway")(gateway.gateway)
app.command("pack")(packages.pack)
app.command("unpack")(packages.unpack)
app.command("inspect")(inspection.inspect)
app.command("verify")(checks.verify)
app.command("lint")(checks.lint)
app.command("convert")(transforms.convert)
app.command("diff")(transforms.diff)
app.command("merge")(merging.merge)
app.command("sign")(signing.sign)
app.command("train")(train.train)
app.command("push")(adapters.push)
app.command("import")(adapters.import_adapter)
app.command("pull")(adapters.pull)
app.command("ls")(adapters.ls)
app.command("rm")(adapters.rm)
app.command("ttl")(adapters.ttl)
app.command("pin")(residency.pin)
app.command("unpin")(residency.unpin)
app.command("prefetch")(residency.prefetch)
app.command("watch")(residency.watch)
app.command("top")(top.top)
app.command("health")(health.health)
app.add_typer(alias.app, name="alias")
app.add_typer(quarantine.app, name="quarantine")
app.command("bench")(bench.bench)


def run() -> int:
    """Run the command line; an error of the user is one line on stderr and exit code 1."""
    command = CurrentCommand()
    try:
        app(obj=command)
    except (LoramuxError, PackageError, OSError) as error:
        print(f"loramux: {error_message(error, command)}", file=sys.stderr)
        return 1
    return 0
