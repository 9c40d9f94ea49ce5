"""`loramux gateway`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from loramux._channel import checked
from loramux.cli.options import DEFAULT_SERVER, needs
from loramux.client import DEFAULT_TIMEOUT
from loramux.errors import FailedPreconditionError, InvalidArgumentError

EXIT_CONFIG = 78
"""EX_CONFIG of sysexits.h, as `loramux serve` ends where a setting is wrong."""


def gateway(
    target: Annotated[
        list[str],
        typer.Option(
            envvar="LORAMUX_SERVER",
            metavar="HOST:PORT",
            help="The server to call; may be repeated, for servers that serve the same. "
            "dns:///HOST:PORT for a name that stands for several.",
        ),
    ] = [DEFAULT_SERVER],  # noqa: B006 - it is not changed
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Its port; 0 takes a free one.")] = (
        8000
    ),
    tls_cert: Annotated[
        Path | None, typer.Option(metavar="FILE", help="PEM file of the gateway's certificate.")
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="PEM file of its private key.")
    ] = None,
    insecure: Annotated[
        bool,
        typer.Option("--insecure", help="Listen where others can reach it, without TLS or keys."),
    ] = False,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A name by which callers reach it, beside localhost, as behind a proxy; "
            "may be repeated.",
        ),
    ] = None,
    console: Annotated[
        bool,
        typer.Option(
            "--console",
            help="Serve a page for people at /console, which manages adapters, too.",
        ),
    ] = False,
    lora_path_root: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Let callers who may upload name adapters below this folder of the gateway's "
            "machine by path, in vLLM's /v1/load_lora_adapter; by default they name URIs alone.",
        ),
    ] = None,
    retries: Annotated[
        bool, typer.Option(help="Ask again where the server was away before it began to answer.")
    ] = True,
    routing: Annotated[
        str,
        typer.Option(
            metavar="HOW",
            help="How requests spread over several servers: adapter, those for one adapter to the "
            "same server as long as it has no more than its part; or round_robin, in turn.",
        ),
    ] = "adapter",
    timeout: Annotated[
        float,
        typer.Option(min=0.001, max=86_400, help="Seconds for a request that does not say."),
    ] = DEFAULT_TIMEOUT,
    drain_timeout: Annotated[
        int, typer.Option(min=0, help="Seconds for requests under way when it is told to end.")
    ] = 30,
) -> None:
    """Answer OpenAI's HTTP API, in front of a running server.

    Callers bring their keys, as they do to the server; the gateway has none of its own.
    """
    with needs(
        "starlette", "uvicorn", "uvloop", "httptools", "msgspec", "grpc_health",
        extra="gateway", what="gateway",
    ):  # fmt: skip
        import httptools  # noqa: F401 - uvicorn loads these by name
        import uvloop  # noqa: F401

        from loramux.gateway.process import Settings, run
    try:
        run(
            Settings(
                targets=tuple(target),
                host=host,
                port=port,
                tls_cert=tls_cert,
                tls_key=tls_key,
                insecure=insecure,
                allowed_hosts=tuple(allowed_host or ()),
                retries=retries,
                routing=checked(routing),
                timeout=timeout,
                drain_timeout=drain_timeout,
                console=console,
                lora_path_root=lora_path_root,
            )
        )
    except (InvalidArgumentError, FailedPreconditionError, OSError) as error:
        print(f"loramux: {error}", file=sys.stderr)
        raise typer.Exit(EXIT_CONFIG) from None
