"""The command `loramux`. Needs the extra `cli`; without it, it says so."""

import os
import sys


def main() -> int:
    """Run the command line and return its exit code."""
    try:
        import rich  # noqa: F401
        import typer  # noqa: F401
    except ImportError:
        from loramux_adapters.extras import install_command

        print(
            f"loramux: the command line needs typer and rich: {install_command('cli')}",
            file=sys.stderr,
        )
        return 1
    # gRPC looks at this when it is imported. Every process that is started here is a program of its
    # own, and nothing goes on in a fork; to hold gRPC's threads still for one may hang the child.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")
    from loramux.cli.app import run

    return run()
