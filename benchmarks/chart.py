"""A picture of how throughput scales."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Protocol


class Row(Protocol):
    """One measured point."""

    @property
    def series(self) -> str:
        """The series that it belongs to."""

    @property
    def value(self) -> int:
        """Its position on the axis."""

    @property
    def tokens_per_second(self) -> float:
        """The measured value."""

    @property
    def base_tokens_per_second(self) -> float:
        """The value of the base alone."""


def matplotlib() -> ModuleType:
    """Return matplotlib, or exit with a message on what to install."""
    try:
        import matplotlib.figure
    except ModuleNotFoundError:
        raise SystemExit("--plot needs matplotlib: pip install -e '.[bench]'") from None
    return matplotlib


def write_chart(path: Path, panels: Mapping[str, Sequence[Row]]) -> None:
    """Draw a panel for each entry of `panels`, named by what its axis counts."""
    figure = matplotlib().figure.Figure(figsize=(5 * len(panels), 4), layout="constrained")
    for column, (label, rows) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(1, len(panels), column)
        for series in dict.fromkeys(row.series for row in rows):
            line = [row for row in rows if row.series == series]
            axes.plot(
                [row.value for row in line], [row.tokens_per_second for row in line],
                marker="o", label=f"adapters, {series}",
            )  # fmt: skip
        base = {row.value: row.base_tokens_per_second for row in rows}
        axes.plot(list(base), list(base.values()), "k--", marker=".", label="base only")
        axes.set_xscale("log", base=2)
        axes.set_xticks(list(base), labels=[f"{value:,}" for value in base])
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
        axes.set_xlabel(label)
        axes.set_ylabel("output tokens/s")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=150)
