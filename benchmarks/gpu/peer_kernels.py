"""The LoRA kernels of a peer compared with ours: the same values, shrink, expand and both together.

The peer is imported when the command runs, from a checkout or from the folder that contains its
package; nothing of it is part of this repository. Each operator is first compared with the same
product in float64. If the result differs, it is reported and not timed. A ratio is the time of the
peer ÷ ours: above 1 we are faster.

Adapters are of rank 16, or of ranks 8, 16, 32, 64 in turn, which peers pad to the largest. Ours
runs as one kernel per half, as the peer's does; what the engine saves by fusing a half into another
kernel is measured by `benchmarks.gpu.end_to_end`.

S-LoRA is left out: its `dispatch_bgmv` is for square q, k, v and o projections, is not compiled for
a width of 14,336, and its launches cannot be captured in a graph.

    python -m benchmarks.gpu.peer_kernels ../vllm --peer vllm --output result.json
"""

import enum
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import distributions
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks import machine
from benchmarks.fixture import SHAPES
from benchmarks.gpu import device as on
from benchmarks.gpu.operands import LoraOperands, groups
from benchmarks.gpu.operators import Operators, Peer, own
from benchmarks.gpu.padded import Padded
from benchmarks.gpu.punica_operators import Punica
from benchmarks.gpu.record import Record
from benchmarks.gpu.vllm_operators import Vllm
from loramux_server.kernels.gpu.plan import Plan

_NAMES = ("shrink", "expand", "both")
_RANK = 16
_MIXED = (8, 16, 32, 64)
_DISTINCT = 8


class Name(enum.StrEnum):
    """A supported peer."""

    VLLM = "vllm"
    PUNICA = "punica"


_PEERS: dict[Name, type[Peer]] = {Name.VLLM: Vllm, Name.PUNICA: Punica}


@dataclass(frozen=True, slots=True)
class Row:
    """One operator on one group of layers."""

    group: str
    batch: int
    adapters: int
    ranks: str
    operator: str
    own_microseconds: float | None
    peer_microseconds: float | None
    problem: str | None
    """Why one of them was not timed, if so."""

    @property
    def ratio(self) -> float | None:
        """Time of the peer ÷ ours."""
        if self.own_microseconds is None or self.peer_microseconds is None:
            return None
        return self.peer_microseconds / self.own_microseconds


def main(
    path: Annotated[
        Path, typer.Argument(help="Checkout of the peer, or the folder that contains it.")
    ],
    peer: Annotated[Name, typer.Option(help="Name of the peer.")] = Name.VLLM,
    shape: Annotated[str, typer.Option(help=f"Layers of: {', '.join(SHAPES)}.")] = "llama-3.1-8b",
    batch: Annotated[list[int] | None, typer.Option(help="Tokens of a step.")] = None,
    group: Annotated[list[str] | None, typer.Option(help="Groups of layers; default: all.")] = None,
    output: Annotated[Path | None, typer.Option(help="File for the result, as JSON.")] = None,
) -> None:
    """Compare and time; exit with 1 if an operator of ours has a wrong result."""
    chosen, device = SHAPES[shape], on.choose()
    known = groups(chosen)
    if unknown := set(group or ()) - set(known):
        raise typer.BadParameter(f"group {unknown.pop()!r} is none of {', '.join(known)}")
    # Peers do not support float32, and Triton's interpreter does not support bfloat16.
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float16
    imported = _PEERS[peer](path)
    names = group or list(known)
    rows: list[dict[str, Any]] = []
    record = Record(
        output,
        names,
        command="python -m benchmarks.gpu.peer_kernels",
        peer={
            "name": peer,
            "version": _version(path, peer),
            "commit": machine.commit(path) if (path / ".git").exists() else None,
        },
        shape=shape,
        dtype=str(dtype).removeprefix("torch."),
        rows=rows,
        machine=on.describe(device),
    )
    for name in names:
        with record.part(name):
            width, outputs = known[name]
            for tokens in batch or [1, 8, 32, 64]:
                for ranks in _adapters(tokens):
                    operands = LoraOperands.make(width, outputs, tokens, ranks, device, dtype)
                    ours = own(name, chosen, operands, Plan.of(device))
                    for row in _rows(name, operands, ours, imported):
                        rows.append(asdict(row) | {"ratio": row.ratio})
                        print(_line(row), flush=True)
                    record.write()
    if record.has_failed or any(row["own_microseconds"] is None for row in rows):
        raise SystemExit(1)


def _adapters(tokens: int) -> Iterator[list[int]]:
    """Yield the ranks of the adapters of each setting."""
    for count in sorted({1, min(_DISTINCT, tokens), tokens}):
        yield [_RANK] * count
        if count > 1:
            yield [rank for rank, _ in zip(itertools.cycle(_MIXED), range(count), strict=False)]


def _rows(group: str, operands: LoraOperands, ours: Operators, peer: Peer) -> Iterator[Row]:
    """Yield a row for each operator."""
    tokens, ranks = len(operands.x_TK), operands.ranks
    own_problems = _problems(ours, operands)
    try:
        theirs = peer.operators(operands)
        peer_problems = _problems(theirs, operands)
    except Exception as error:  # of any kind: an unsupported case of a peer is a result
        theirs, peer_problems = None, [f"{type(error).__name__}: {error}"] * len(_NAMES)
    kinds = f"{min(ranks)}..{max(ranks)}" if len(set(ranks)) > 1 else str(ranks[0])
    for name, own_problem, peer_problem in zip(_NAMES, own_problems, peer_problems, strict=True):
        own_time = None if own_problem else _microseconds(operands, ours, name)
        peer_time = None
        if theirs and not peer_problem:
            peer_time = _microseconds(operands, theirs, name)
        said = [f"ours: {own_problem}"] if own_problem else []
        said += [f"peer: {peer_problem}"] if peer_problem else []
        problem = "; ".join(said) or None
        yield Row(group, tokens, len(ranks), kinds, name, own_time, peer_time, problem)


def _microseconds(operands: LoraOperands, operators: Operators, name: str) -> float:
    return 1e6 * on.seconds(operands.x_TK.device, getattr(operators, name))


def _problems(operators: Operators, operands: LoraOperands) -> list[str | None]:
    """Return the problem of each operator for each copy of the weights; None if there is none."""
    # A 16-bit y is rounded once or twice, and so is h.
    most = 2 * torch.finfo(operands.x_TK.dtype).eps
    worst = dict.fromkeys(_NAMES, 0.0)
    for slab in range(len(operands.slabs)):
        h_PTR, change_PTN = Padded.of(operands, slab).expected(operands)
        for tensor in operators.written:
            tensor.zero_()
        operators.shrink[slab]()
        widths = [h_TR.shape[1] for h_TR in h_PTR]
        got = [h_TR[:, :n] for h_TR, n in zip(operators.h_PTR(), widths, strict=True)]
        worst["shrink"] = max(worst["shrink"], _error(got, h_PTR))
        operators.expand[slab]()
        worst["expand"] = max(worst["expand"], _error(operators.y_PTN, change_PTN))
        for tensor in operators.written:
            tensor.zero_()
        operators.both[slab]()
        worst["both"] = max(worst["both"], _error(operators.y_PTN, change_PTN))
    return [
        f"{error:.2g} away from float64, more than {most:.2g}" if error > most else None
        for error in worst.values()
    ]


def _error(got: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> float:
    """Return the largest distance ÷ length over tokens and parts; infinite for NaN."""
    error = max(
        float(((a - b).norm(dim=1) / b.norm(dim=1)).max())
        for a, b in zip(got, expected, strict=True)
    )
    return math.inf if math.isnan(error) else error


def _version(path: Path, name: str) -> str | None:
    """Return the version that was installed in `path`."""
    return next((found.version for found in distributions(name=name, path=[str(path)])), None)


def _line(row: Row) -> str:
    what = f"{row.group:8} M={row.batch:<3} {row.adapters:2} of rank {row.ranks:6} {row.operator:6}"
    own_time, peer_time, ratio = row.own_microseconds, row.peer_microseconds, row.ratio
    times = "  ".join(
        f"{name} {time:9.1f} µs" if time is not None else f"{name} {'not timed':>12}"
        for name, time in (("ours", own_time), ("peer", peer_time))
    )
    return f"{what} {times}  {f'ratio {ratio:5.2f}' if ratio else row.problem}"


if __name__ == "__main__":
    torch.manual_seed(0)
    typer.run(main)
