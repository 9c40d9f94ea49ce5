"""Alternating measurements of variants of a decode step."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median

BASE = "base"
"""The variant that others are compared with."""
Figure = dict[str, object]


def in_turns(size: int, ways: Mapping[str, Callable[[], float]], repeats: int) -> Figure:
    """Return and print the times of steps of `size` requests, in ms, and ratios to the base.

    Args:
        size: Concurrent requests.
        ways: Name -> measures the seconds of a step; one of them is the base.
        repeats: Rounds; medians are returned.
    """
    found: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(repeats):
        for way, measure in ways.items():
            found[way].append(1000 * measure())
    base = median(found[BASE])
    ratios = {
        f"{way} ÷ {BASE}": round(median(found[way]) / base, 3) for way in found if way != BASE
    }
    figure = {"batch": size, "base, ms": round(base, 2), **ratios, "all, ms": found}
    print("  ".join(f"{key} {value}" for key, value in figure.items()), flush=True)
    return figure


def write_record(
    output: Path, command: str, options: Mapping[str, object], machine: object,
    figures: list[Figure],
) -> None:  # fmt: skip
    """Write the results to `output`, as JSON."""
    record = {"command": command, "options": options, "machine": machine, "figures": figures}
    output.write_text(json.dumps(record, indent=1) + "\n")
