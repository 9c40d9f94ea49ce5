"""The command `loramux`. Needs the extra `cli`; without it, it says so."""

import sys


def main() -> int:
    """Run the command line and return its exit code."""
    try:
        import rich  # noqa: F401
        import typer  # noqa: F401
    except ImportError:
        print(
            "loramux: the command line needs typer and rich: pip install 'loramux[cli]'",
            file=sys.stderr,
        )
        return 1
    from loramux.cli.app import run

    return run()
