"""`loramux inspect`: contents of an adapter."""

import dataclasses
import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from loramux.cli.options import Json
from loramux.cli.tables import short, show
from loramux_adapters import Package, open_package
from loramux_adapters.package import digest_of

if TYPE_CHECKING:
    from loramux_adapters.weights.measure import Measured

_BAR = 24


def inspect(
    path: Annotated[Path, typer.Argument(help="Package or PEFT folder.")],
    modules: Annotated[
        bool,
        typer.Option("--modules", "-m", help="List each layer with its effective rank."),
    ] = False,
    plot: Annotated[
        Path | None, typer.Option(help="Plot the effective rank of each layer to this PNG file.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show the contents of an adapter: layers, ranks, norms, notes.

    Also its scales and base model. `norm` is the Frobenius norm of scale * B A. `used` is the
    effective rank, over how many directions the update spreads: the exponential of the entropy of
    its squared singular values.
    """
    from loramux_adapters.weights.measure import measure

    with open_package(path) as (file, package):
        measured = sorted(measure(file, package), key=_in_order)
        digest = digest_of(file)
        size = file.tell()
    if plot:
        from loramux.cli.plot import draw_ranks

        draw_ranks(measured, plot)
    if as_json:
        print(
            json.dumps(
                {
                    "digest": digest,
                    "size_bytes": size,
                    "base_model": package.config.base_model,
                    "rank": package.rank,
                    "virtual_tokens": package.virtual.count if package.virtual else 0,
                    "targets": _by_target(measured),
                    "modules": [dataclasses.asdict(entry) for entry in measured],
                    "edits": [
                        {"module": e.module, "kind": e.kind, "shape": e.tensor.shape}
                        for e in package.edits
                    ],
                    "head": _head(package),
                    "notes": package.notes,
                    "peft_config": package.peft_config,
                }
            )
        )
        return
    print(f"digest  {digest}")
    print(f"size    {size / 1e6:.2f} MB")
    print(f"base    {package.config.base_model or '(not recorded)'}")
    if package.contents.invocation:
        print(f"active  from tokens {', '.join(map(str, package.contents.invocation))}")
    for line in _notes(package):
        print(line)
    for kind, number in Counter(edit.kind for edit in package.edits).items():
        print(f"edits   {number} of kind {kind}")
    if package.head and package.labels:
        print(f"labels  {len(package.labels.names)}, {package.head.task}, {package.labels.problem}")
    elif package.head:
        print(f"task    {package.head.task}, spans of a text")
    if package.virtual:
        given = "keys and values" if package.virtual.has_cache else "embeddings"
        print(f"prefix  {given} of {package.virtual.count} virtual tokens")
    elif modules:
        show(
            "module >rank used >effective >norm >largest >scale >in >out dtype",
            (_module_row(entry) for entry in measured),
        )
    else:
        show(
            "target >layers >rank >scale >in >out dtype >norm >used",
            (row.values() for row in _by_target(measured)),
        )


def _in_order(entry: "Measured") -> list[tuple[int, str]]:
    """Return a sort key that puts layer 2 before layer 10."""
    parts = entry.module.split(".")
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def _head(package: Package) -> dict[str, object] | None:
    head, labels = package.head, package.labels
    return {"task": str(head.task), **(labels.note if labels else {})} if head else None


def _notes(package: Package) -> Iterable[str]:
    for name, note in package.notes.items():
        if name == "tensors":
            continue
        text = note if isinstance(note, str) else json.dumps(note)
        yield f"{name:<7} {text if len(text) <= 160 else text[:160] + '…'}"


def _module_row(entry: "Measured") -> list[object]:
    filled = round(_BAR * (entry.effective_rank or 0.0) / entry.rank)
    return [
        entry.module,
        entry.rank,
        "█" * filled + "░" * (_BAR - filled),
        short(entry.effective_rank),
        short(entry.norm),
        short(entry.largest),
        short(entry.scale),
        entry.in_features,
        entry.out_features,
        entry.dtype,
    ]


def _by_target(measured: "list[Measured]") -> list[dict[str, object]]:
    """Return a row for each kind of layer, with ranges where its layers differ."""
    found = defaultdict(list)
    for entry in measured:
        found[entry.module.rpartition(".")[2]].append(entry)
    return [
        {
            "target": target,
            "layers": len(entries),
            "rank": _span([entry.rank for entry in entries]),
            "scale": _span([round(entry.scale, 6) for entry in entries]),
            "in_features": _span([entry.in_features for entry in entries]),
            "out_features": _span([entry.out_features for entry in entries]),
            "dtype": "/".join(sorted({part for e in entries for part in e.dtype.split("/")})),
            "norm": _span(_rounded(entry.norm for entry in entries)),
            "effective_rank": _span(_rounded(entry.effective_rank for entry in entries)),
        }
        for target, entries in sorted(found.items())
    ]


def _rounded(values: Iterable[float | None]) -> list[float]:
    return [float(f"{value:.4g}") for value in values if value is not None]


def _span(values: list[float] | list[int]) -> str | float | None:
    if not values:
        return None
    low, high = min(values), max(values)
    return low if low == high else f"{low}..{high}"
