"""Headings that group the commands in `loramux --help`."""

from typing import Any

from typer.core import TyperGroup

HEADINGS = {
    "Serve": ("serve", "demo", "gateway"),
    "Call a server": ("generate", "chat", "classify", "answer", "embed", "batch"),
    "Adapter files": (
        "train", "pack", "unpack", "inspect", "verify", "lint", "convert", "diff", "merge", "sign",
    ),
    "Adapters on a server": (
        "push", "import", "pull", "ls", "rm", "ttl", "alias", "pin", "unpin", "prefetch", "watch",
    ),
    "Operate": ("top", "health", "bench", "keys", "tenants", "quarantine"),
}  # fmt: skip
"""Heading -> its commands, in the order of the help."""


class HeadedGroup(TyperGroup):
    """A group whose help lists its commands under `HEADINGS`."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ANN401
        """Return the names of the commands in the order of the help."""
        return [name for names in HEADINGS.values() for name in names if name in self.commands]

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401
        """Write one line for each command."""
        names = self.list_commands(ctx)
        longest = max(map(len, names))
        width = formatter.width - longest - 6  # margin and gap
        for heading, below in HEADINGS.items():
            lines = [
                (name.ljust(longest), self.commands[name].get_short_help_str(width))
                for name in below
            ]
            with formatter.section(heading):
                formatter.write_dl(lines)
