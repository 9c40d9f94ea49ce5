"""The command `loramux`. Without the extra `cli`, it only says how to install that."""

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
    # gRPC reads this when it is imported. Child processes here always exec another program; pausing
    # gRPC's threads around a fork is not needed and may hang the child.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")
    from loramux.cli.app import run

    return run()
