"""`loramux batch`."""

import asyncio
import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from loramux._access import key_of_environment
from loramux.cli.options import DEFAULT_SERVER, Server, needs
from loramux.client import DEFAULT_TIMEOUT


def batch(
    requests: Annotated[
        Path, typer.Argument(help="File with a request of OpenAI's batches on each line.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="File for the answers.")
    ],
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on with FILE: what it answers well is not asked again."),
    ] = False,
    concurrency: Annotated[
        int, typer.Option("--concurrency", "-c", min=1, help="Requests under way at once.")
    ] = 32,
    patience: Annotated[
        float,
        typer.Option(
            min=0, help="Seconds for which a request is tried again where the server has no room."
        ),
    ] = 600.0,
    timeout: Annotated[
        float, typer.Option(min=0.001, max=86_400, help="Seconds for one that does not say.")
    ] = DEFAULT_TIMEOUT,
    server: Server = DEFAULT_SERVER,
) -> None:
    """Answer a file of requests for OpenAI's API, each for the adapter that it names."""
    with needs(
        "starlette", "msgspec", "grpc_health", extra="gateway", what="batch"
    ):  # what the gateway answers with
        from loramux.gateway.backend import Backend
        from loramux.gateway.batch import OutputFile, Progress, WrongLineError, answer_all, lines_of
        from loramux.gateway.door import Door
    try:
        # All lines are looked at before the first is asked.
        num_lines = sum(1 for _ in lines_of(requests))
    except WrongLineError as error:
        raise typer.BadParameter(f"{requests}: {error}") from None
    if output.exists() and not resume:
        raise typer.BadParameter(f"{output} is there; name another file, or --resume this one")
    open_backend = partial(Backend, server, retries=True, routing="adapter", timeout=timeout)
    console = Console(stderr=True)
    columns = (TextColumn("requests"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())

    async def run() -> Progress:
        with (
            OutputFile(output, goes_on=resume) as file,
            Bar(*columns, console=console, disable=not console.is_terminal) as bar,
        ):
            task = bar.add_task("", total=num_lines, completed=len(file.done))
            async with Door.opened(open_backend, key_of_environment()) as door:
                return await answer_all(
                    lines_of(requests),
                    door,
                    file,
                    concurrency=concurrency,
                    patience=patience,
                    on_done=lambda _: bar.advance(task),
                )

    progress = asyncio.run(run())
    told = ", ".join(f"{count} with {status}" for status, count in progress.statuses.most_common())
    print(
        f"{progress.statuses.total()} of {num_lines} requests answered now: {told or 'none'}",
        file=sys.stderr,
    )
    if progress.num_failed:
        raise typer.Exit(1)
