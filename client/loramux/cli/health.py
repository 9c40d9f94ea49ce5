"""`loramux health`."""

from contextlib import closing
from typing import Annotated

import typer
from grpc_health.v1 import health_pb2, health_pb2_grpc

from loramux._access import open_channel
from loramux._wire import raising
from loramux.cli.options import DEFAULT_SERVER, Server
from loramux.errors import NotFoundError, UnavailableError


def health(
    server: Server = DEFAULT_SERVER,
    service: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="gRPC service to check, such as loramux.v1.GenerationService; default: "
            "the whole server.",
        ),
    ] = "",
    timeout: Annotated[float, typer.Option(min=0.001, max=3600, help="Timeout in seconds.")] = 5.0,
) -> None:
    """Check whether a server is ready to serve requests.

    Exits with 0 if it is, else with 1. Needs no API key.
    """
    request = health_pb2.HealthCheckRequest(service=service)
    channel = open_channel(
        server, key="", tls=None, credentials=None, retries=False, tracer_provider=None
    )
    with closing(channel):
        try:
            with raising():
                answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=timeout)
        except NotFoundError:
            raise NotFoundError(f"--service {service}: the server has no such service") from None
    status = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    if answer.status != health_pb2.HealthCheckResponse.SERVING:
        raise UnavailableError(f"{service or 'the server'} is {status}")
    print(status)
