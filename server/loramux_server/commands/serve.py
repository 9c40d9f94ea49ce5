"""`loramux serve`."""

import asyncio
import sys

import typer

from loramux._json_lines import set_up_logging
from loramux_server.commands.flags import HeadedCommand, takes_config
from loramux_server.commands.headings import HEADINGS, METAVARS
from loramux_server.config import ConfigError, ServerConfig, make_config

COMMAND = HeadedCommand
"""What the command line makes of `serve`."""
EXIT_CONFIG = 78
"""EX_CONFIG of sysexits.h: something in the configuration is wrong."""
EXIT_BUSY = 75
"""EX_TEMPFAIL of sysexits.h: somebody else has the store, or its database is away."""


@takes_config(ServerConfig, HEADINGS, METAVARS)
def serve(settings: dict[str, object]) -> None:
    """Serve a base model and its adapters over gRPC."""
    set_up_logging(log_format=str(settings["log_format"]))
    raise typer.Exit(run(settings))


def run(settings: dict[str, object]) -> int:
    """Serve with `settings` and return the exit code; what the user can mend is one line."""
    # Imported here: `--help` needs none of it.
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
