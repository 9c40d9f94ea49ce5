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

from loramux._access import checked_key
from loramux.cli.options import DEFAULT_SERVER, Server, needs
from loramux.client import DEFAULT_TIMEOUT


def batch(
    requests: Annotated[
        Path,
        typer.Argument(help="JSON lines in the format of OpenAI's Batch API, one request each."),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="File to write the responses to.")
    ],
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Continue FILE: requests that it has a successful response for are not "
            "sent again.",
        ),
    ] = False,
    concurrency: Annotated[
        int, typer.Option("--concurrency", "-c", min=1, help="Requests in flight at once.")
    ] = 32,
    patience: Annotated[
        float,
        typer.Option(min=0, help="Seconds to retry a request while the server is overloaded."),
    ] = 600.0,
    timeout: Annotated[
        float,
        typer.Option(min=0.001, max=86_400, help="Timeout in seconds of requests that set none."),
    ] = DEFAULT_TIMEOUT,
    priority: Annotated[
        int | None,
        typer.Option(
            min=-(1 << 31),
            max=(1 << 31) - 1,
            metavar="INTEGER",
            help="Priority of requests that set none: order among the requests of your tenant; "
            "lower goes first. Default: 0.",
        ),
    ] = None,
    server: Server = DEFAULT_SERVER,
) -> None:
    """Run a file of OpenAI API requests against a server.

    Each request goes to the adapter that its `model` names.
    """
    with needs(
        "starlette", "msgspec", "grpc_health", extra="gateway", what="batch"
    ):  # which the gateway needs
        from loramux.gateway.backend import Backend
        from loramux.gateway.batch import (
            ChangedFileError,
            OutputFile,
            Progress,
            RequestFile,
            WrongLineError,
            answer_all,
        )
        from loramux.gateway.in_process import InProcessGateway
    if not requests.is_file():
        raise typer.BadParameter(f"{requests} is not a regular file; it is read twice")
    try:
        lines = RequestFile(requests)
    except WrongLineError as error:
        raise typer.BadParameter(f"{requests}: {error}") from None
    if output.exists() and not resume:
        raise typer.BadParameter(
            f"{output} exists; choose another file, or continue this one with --resume"
        )
    key = checked_key(None)
    try:
        file = OutputFile(output, goes_on=resume)
    except WrongLineError as error:
        raise typer.BadParameter(f"{output}: {error}") from None
    num_before = len(lines.ids & file.done)
    open_backend = partial(Backend, server, retries=True, routing="adapter", timeout=timeout)
    console = Console(stderr=True)
    columns = (
        TextColumn("requests"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[num_again]} retries"),
    )

    async def run() -> Progress:
        with file, Bar(*columns, console=console, disable=not console.is_terminal) as bar:
            task = bar.add_task("", total=len(lines.ids), completed=num_before, num_again=0)

            def show(progress: Progress) -> None:
                num_done = num_before + progress.statuses.total()
                bar.update(task, completed=num_done, num_again=progress.num_again)

            async with InProcessGateway.opened(open_backend, key) as gateway:
                return await answer_all(
                    lines,
                    gateway,
                    file,
                    concurrency=concurrency,
                    patience=patience,
                    priority=priority,
                    on_progress=show,
                )

    try:
        progress = asyncio.run(run())
    except ChangedFileError as error:
        print(f"loramux: {requests}: {error}; --resume continues {output}", file=sys.stderr)
        raise typer.Exit(1) from None
    statuses = ", ".join(
        f"{count} with {status}" for status, count in progress.statuses.most_common()
    )
    num_now = progress.statuses.total()
    print(
        f"{num_now} of {len(lines.ids)} requests answered now: {statuses or 'none'}; "
        f"retries: {progress.num_again}",
        file=sys.stderr,
    )
    if progress.num_failed or num_before + num_now < len(lines.ids):
        raise typer.Exit(1)
