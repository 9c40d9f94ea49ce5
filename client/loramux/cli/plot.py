"""Charts as PNG files. Needs matplotlib, from the extra `plot`."""

from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

from loramux.cli.options import needs

if TYPE_CHECKING:
    from loramux_adapters.train.curve import Curve
    from loramux_adapters.weights.measure import Measured


def draw_ranks(measured: "list[Measured]", target: Path) -> None:
    """Plot the effective rank and the rank of each layer to the PNG `target`."""
    with needs("matplotlib", extra="plot", what="--plot"):
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    found = defaultdict(list)
    for entry in measured:
        found[entry.module.rpartition(".")[2]].append(entry)
    figure = Figure(figsize=(8, 1 + 1.2 * len(found)), layout="constrained")
    axes = figure.subplots(len(found), 1, squeeze=False, sharex=True)[:, 0]
    for axis, (kind, entries) in zip(axes, sorted(found.items()), strict=True):
        places = range(len(entries))
        axis.bar(places, [entry.rank for entry in entries], color="0.9", label="rank")
        axis.bar(places, [entry.effective_rank or 0.0 for entry in entries], label="effective rank")
        axis.set_ylabel(kind, rotation=0, ha="right", va="center")
    axes[-1].set_xlabel("layers of a kind, in their order")
    axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper right", ncols=2)
    figure.savefig(target, format="png", dpi=150)


def draw_losses(curve: "Curve", target: Path) -> None:
    """Plot the training and evaluation losses to the PNG `target`."""
    with needs("matplotlib", extra="plot", what="--plot"):
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    figure = Figure(figsize=(8, 4), layout="constrained")
    axis = figure.subplots()
    for label, points, colour, marker in (
        ("training, each batch", curve.training, "0.7", ""),
        ("evaluation", curve.evaluation, "C0", "o"),
    ):
        if points:
            steps, losses = zip(*((point.step, point.loss) for point in points), strict=True)
            axis.plot(steps, losses, label=label, color=colour, marker=marker)
    axis.set_xlabel("step")
    axis.set_ylabel("loss")
    axis.set_yscale("log")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.legend()
    figure.savefig(target, format="png", dpi=150)
