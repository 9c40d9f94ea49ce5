"""`loramux serve`."""

import asyncio
import sys

import typer

from loramux._json_lines import set_up_logging
from loramux_server.commands.flags import HeadedCommand, takes_config
from loramux_server.commands.headings import HEADINGS, METAVARS
from loramux_server.config import ConfigError, ServerConfig, make_config

COMMAND = HeadedCommand
"""The command class of `serve` on the command line."""
EXIT_CONFIG = 78
"""EX_CONFIG of sysexits.h: a setting is invalid."""
EXIT_BUSY = 75
"""EX_TEMPFAIL of sysexits.h: the store is in use, or its database is unavailable."""


@takes_config(ServerConfig, HEADINGS, METAVARS)
def serve(settings: dict[str, object]) -> None:
    """Serve a base model and its adapters over gRPC."""
    set_up_logging(log_format=str(settings["log_format"]))
    raise typer.Exit(run(settings))


def run(settings: dict[str, object]) -> int:
    """Serve with `settings` and return the exit code; user errors print one line."""
    # Imported here to keep `--help` fast.
    import uvloop

    from loramux_server.serving import serve_until_signal
    from loramux_server.store.blobs import StoreLockedError
    from loramux_server.store.catalog import CatalogAwayError

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(serve_until_signal(make_config(settings)))
    except ConfigError as error:
        print(f"loramux: {error}", file=sys.stderr)
        return EXIT_CONFIG
    except (StoreLockedError, CatalogAwayError) as error:
        print(f"loramux: {error}", file=sys.stderr)
        return EXIT_BUSY
