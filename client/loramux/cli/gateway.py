"""`loramux gateway`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from loramux._access import CERT_KEY_VARIABLE, CERT_VARIABLE
from loramux._channel import checked
from loramux.cli.options import DEFAULT_SERVER, needs
from loramux.client import DEFAULT_TIMEOUT
from loramux.errors import FailedPreconditionError, InvalidArgumentError

EXIT_CONFIG = 78
"""EX_CONFIG of sysexits.h, as `loramux serve` exits if a setting is wrong."""


def gateway(
    target: Annotated[
        list[str],
        typer.Option(
            envvar="LORAMUX_SERVER",
            metavar="HOST:PORT",
            help="Server to call; repeatable, for several servers with the same "
            "adapters. dns:///HOST:PORT stands for all addresses of a DNS name.",
        ),
    ] = [DEFAULT_SERVER],  # noqa: B006 - it is not changed
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port to listen on; 0 picks a free one.")
    ] = (8000),
    tls_cert: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="PEM file of the gateway's certificate, to serve HTTPS."),
    ] = None,
    tls_key: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="PEM file of the private key for --tls-cert."),
    ] = None,
    target_cert: Annotated[
        Path | None,
        typer.Option(
            envvar=CERT_VARIABLE,
            metavar="FILE",
            help="PEM file of the client certificate to present to servers. It may be replaced "
            "while the gateway runs.",
        ),
    ] = None,
    target_key: Annotated[
        Path | None,
        typer.Option(
            envvar=CERT_KEY_VARIABLE,
            metavar="FILE",
            help="PEM file of the private key for --target-cert.",
        ),
    ] = None,
    insecure: Annotated[
        bool,
        typer.Option(
            "--insecure", help="Listen on an address other machines can reach without TLS or keys."
        ),
    ] = False,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Accept this Host header besides localhost, such as the name of a "
            "proxy in front; repeatable.",
        ),
    ] = None,
    console: Annotated[
        bool,
        typer.Option(
            "--console",
            help="Serve the web console at /console, which can also manage adapters.",
        ),
    ] = False,
    lora_path_root: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Let callers with upload permission load adapters by path from below "
            "this folder on the gateway's machine with vLLM's /v1/load_lora_adapter; "
            "default: URIs only.",
        ),
    ] = None,
    metrics: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Serve Prometheus metrics at this address; port 0 picks a free one. "
            "Default: no metrics.",
        ),
    ] = None,
    metrics_client_ca: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="PEM file of the CA of those who may read the metrics where other machines can "
            "reach them: they are HTTPS then and require a client certificate.",
        ),
    ] = None,
    log_format: Annotated[
        str | None,
        typer.Option(
            metavar="text|json",
            help="Log a line for each request to stderr, as text or JSON; default: only errors.",
        ),
    ] = None,
    retries: Annotated[
        bool,
        typer.Option(
            help="Retry requests if the server was unavailable before it began to answer."
        ),
    ] = True,
    routing: Annotated[
        str,
        typer.Option(
            metavar="HOW",
            help="Load balancing over several servers: adapter (affinity: requests for "
            "one adapter go to the same server unless that has more than its share) or "
            "round_robin.",
        ),
    ] = "adapter",
    timeout: Annotated[
        float,
        typer.Option(min=0.001, max=86_400, help="Timeout in seconds of requests that set none."),
    ] = DEFAULT_TIMEOUT,
    drain_timeout: Annotated[
        int,
        typer.Option(
            min=0, help="Drain period after SIGTERM: seconds for requests in progress to finish."
        ),
    ] = 30,
) -> None:
    """Serve OpenAI's and Anthropic's HTTP APIs in front of a server.

    Callers authenticate with their own API keys of the server; the gateway has none.
    """
    if log_format not in (None, "text", "json"):
        raise typer.BadParameter(
            f"{log_format!r}; expected text or json", param_hint="--log-format"
        )
    with needs(
        "starlette", "uvicorn", "uvloop", "httptools", "msgspec", "grpc_health",
        "prometheus_client",
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
                target_cert=target_cert,
                target_key=target_key,
                allowed_hosts=tuple(allowed_host or ()),
                retries=retries,
                routing=checked(routing),
                timeout=timeout,
                drain_timeout=drain_timeout,
                console=console,
                lora_path_root=lora_path_root,
                metrics=metrics,
                metrics_client_ca=metrics_client_ca,
                log_format=log_format,
            )
        )
    except (InvalidArgumentError, FailedPreconditionError, OSError) as error:
        print(f"loramux: {error}", file=sys.stderr)
        raise typer.Exit(EXIT_CONFIG) from None
