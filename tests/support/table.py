"""Figures as a table in Markdown."""

from collections.abc import Sequence


def markdown(rows: Sequence[dict[str, object]]) -> str:
    """Return `rows`, all with the keys of the first, under those as heads."""
    heads = list(rows[0])
    lines = ["| " + " | ".join(heads) + " |", "| " + " | ".join("---" for _ in heads) + " |"]
    lines += ["| " + " | ".join(map(str, row.values())) + " |" for row in rows]
    return "\n".join(lines)
