"""`loramux train`: train an adapter on a file of examples."""

import dataclasses
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from loramux.cli.options import Json, needs
from loramux.cli.output import whole_file
from loramux.cli.plot import draw_losses
from loramux_adapters.extras import install_command
from loramux_adapters.package import digest_of

DEMO = "demo"
DEMO_NAME = "loramux-demo"


def train(
    base: Annotated[
        str,
        typer.Option(
            help=f"Folder of the base model and its tokenizer, or {DEMO} for the embedded model."
        ),
    ],
    data: Annotated[
        Path,
        typer.Option(
            help='Training data, JSON lines: {"prompt": …, "completion": …}, {"text": '
            '…, "label": …}, {"text": …, "pair": …, "label": …}, with "labels": […] or '
            '"score": 0.5 in place of "label" for multi-label classification or regression, '
            '{"tokens": […], "tags": […]}, or {"question": …, "context": …, "answer": …}, '
            'where "start" may give the character at which the answer begins.'
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Package to write; default: DATA.safetensors."),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            help="Task: generate, classify, tag or answer; default: as the data and the "
            "base suggest. Text and label train a decoder to write the label, unless this is "
            "classify."
        ),
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            help="Method: lora, rslora, dora, adalora (packed as plain LoRA), ia3, "
            "prompt or prefix."
        ),
    ] = "lora",
    rank: Annotated[
        int,
        typer.Option(
            min=1,
            help="Rank; with adalora, the average over layers; with prompt and prefix, "
            "the number of virtual tokens.",
        ),
    ] = 8,
    alpha: Annotated[
        float | None, typer.Option(help="LoRA alpha (scale times rank); default: twice the rank.")
    ] = None,
    targets: Annotated[
        str,
        typer.Option(
            help="Comma-separated target modules, such as q_proj,v_proj; default: all "
            "linear layers."
        ),
    ] = "",
    epochs: Annotated[int, typer.Option(help="Number of epochs.")] = 3,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 1e-3,
    batch_size: Annotated[int, typer.Option(help="Batch size in examples.")] = 16,
    seed: Annotated[
        int,
        typer.Option(
            help="Random seed of the weights, the order of examples and the evaluation split."
        ),
    ] = 0,
    eval_share: Annotated[
        float, typer.Option(help="Fraction of the examples to hold out for evaluation; 0 for none.")
    ] = 0.1,
    threads: Annotated[
        int | None, typer.Option(help="CPU threads; default: chosen by torch.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="PNG", help="Plot the losses to this PNG file.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Train an adapter with PEFT and pack it.

    Uses transformers' Trainer, in float32. For generation, the loss covers the completion and the
    end token after it. A line of text and label trains a decoder with the prompt `TEXT ->` and the
    completion ` LABEL`, so prompt it like that; an encoder-decoder gets TEXT alone. To classify
    texts or pairs (single label, multi-label or regression), tag words or answer questions, the
    only tasks of an encoder, a head is trained with the adapter, and the package names its labels.
    The package records the SHA-256 of the data, the arguments, the losses and the accuracy.
    """
    with needs("peft", "accelerate", "transformers", "torch", "numpy", extra="train", what="train"):
        from loramux_adapters.train.methods import Shape
        from loramux_adapters.train.plan import Plan
        from loramux_adapters.train.run import train as trained
    if plot is not None:
        with needs("matplotlib", extra="plot", what="--plot"):
            import matplotlib  # noqa: F401
    folder, name = _base(base)
    plan = Plan(
        base=folder,
        base_name=name,
        data=data,
        task=task,
        shape=Shape(
            method=method,
            rank=rank,
            alpha=2.0 * rank if alpha is None else alpha,
            targets=tuple(filter(None, targets.split(","))),
        ),
        epochs=epochs,
        learning_rate=lr,
        batch_size=batch_size,
        seed=seed,
        eval_share=eval_share,
        threads=threads,
    )
    target = output or Path(f"{data.stem}.safetensors")
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with whole_file(target) as file:
        with Progress(*columns, console=console, disable=as_json or not console.is_terminal) as bar:
            all_steps = bar.add_task("steps", total=None)

            def show(done: int, steps: int, loss: float) -> None:
                bar.update(all_steps, completed=done, total=steps, description=f"loss {loss:.4f}")

            curve = trained(plan, file, show)
        digest = digest_of(file)
    if plot is not None:
        draw_losses(curve, plot)
    if as_json:
        print(json.dumps({"path": str(target), "digest": digest} | dataclasses.asdict(curve)))
        return
    if curve.evaluation:
        before, after = curve.evaluation[0].loss, curve.evaluation[-1].loss
        print(f"evaluation loss {before:.4f} -> {after:.4f}")
    if curve.accuracy:
        print(f"accuracy {curve.accuracy[0]:.4f} -> {curve.accuracy[-1]:.4f}")
    print(f"{target} {digest}")


def _base(base: str) -> tuple[Path, str]:
    """Return the folder of the base, and its name in the package."""
    if base != DEMO:
        return Path(base), base
    # Not imported, which would be slow; only its folder is needed.
    server = find_spec("loramux_server")
    if server is None or not server.submodule_search_locations:
        raise typer.BadParameter(
            "--base demo: the embedded model needs the server: " + install_command("server")
        )
    return Path(server.submodule_search_locations[0]) / DEMO / "base", DEMO_NAME
