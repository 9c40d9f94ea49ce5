"""The parts into which a batch is divided for recurrent layers.

Legend: T tokens of the batch, B requests, N tokens of a part.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch

from loramux_server.kernels.states import BEGINNING, StateBatch
from loramux_server.lora.segments import Int32
from loramux_server.models.recurrent.states import LayerStateCache, LayerStates

Rows = slice | torch.Tensor
"""Indices of tokens in a batch, in order."""


class Part(ABC):
    """Some tokens of a batch, and the slots of their requests."""

    rows: Rows

    @abstractmethod
    def gather(self, x: torch.Tensor) -> torch.Tensor:
        """Return the part's tokens of `x`, [1, T, ...], as a batch of texts of equal length."""

    @abstractmethod
    def row(self, y: torch.Tensor) -> torch.Tensor:
        """Return the output for these texts as rows of tokens, [N, ...]."""

    @abstractmethod
    def begin(self, states: LayerStates) -> LayerStateCache:
        """Return a layer's states of its requests."""

    @abstractmethod
    def end(self, states: LayerStates, given: LayerStateCache) -> None:
        """Store the updated states."""


@dataclass(frozen=True, slots=True)
class SingleTokens(Part):
    """Requests with one token each, side by side."""

    rows: Rows
    read_N: torch.Tensor
    write_N: torch.Tensor
    kept: tuple[tuple[int, int], ...] = ()
    """(source, target) slots to copy afterwards."""

    def gather(self, x: torch.Tensor) -> torch.Tensor:
        """Return them as texts of one token."""
        return x[0, self.rows].unsqueeze(1)

    def row(self, y: torch.Tensor) -> torch.Tensor:
        """Return their output as rows."""
        return y.squeeze(1)

    def begin(self, states: LayerStates) -> LayerStateCache:
        """Return a layer's states of the requests."""
        return states.gathered(self.read_N, self.write_N)

    def end(self, states: LayerStates, given: LayerStateCache) -> None:
        """Write the states to their slots, and copy those that are kept."""
        states.scatter(given, self.write_N)
        for source, target in self.kept:
            states.copy(source, target)


@dataclass(frozen=True, slots=True)
class Run(Part):
    """Successive tokens of one request, which update its state in its slot."""

    rows: slice
    read: int
    write: int
    kept: int = BEGINNING
    """Slot to which the resulting state is copied; `BEGINNING` for none."""
    is_followed: bool = False
    """Whether another part of the same request follows, which continues before this one's `end`."""

    def gather(self, x: torch.Tensor) -> torch.Tensor:
        """Return the tokens as one text."""
        return x[:, self.rows]

    def row(self, y: torch.Tensor) -> torch.Tensor:
        """Return its output as rows."""
        return y[0]

    def begin(self, states: LayerStates) -> LayerStateCache:
        """Return a layer's state of the request, in its slot."""
        if self.read != self.write:
            states.copy(self.read, self.write)
        return states.at(self.write, self.kept if self.is_followed else BEGINNING)

    def end(self, states: LayerStates, given: LayerStateCache) -> None:
        """Copy the final state if it is to be kept."""
        del given
        if self.kept != BEGINNING and not self.is_followed:
            states.copy(self.write, self.kept)


def parts_of(query_start_B: Int32, states: StateBatch, device: torch.device) -> list[Part]:
    """Return the parts of a batch whose requests begin at `query_start_B`."""
    length_B = np.diff(query_start_B)
    is_single_B = length_B == 1
    kept_of: dict[int, list[tuple[int, int]]] = {}
    for each in states.kept:
        kept_of.setdefault(each.request, []).append((each.length, each.slot))
    read, write = states.read_B.tolist(), states.write_B.tolist()
    parts: list[Part] = []
    if is_single_B.any():
        single = np.flatnonzero(is_single_B).tolist()
        kept = tuple((write[b], slot) for b in single for _, slot in kept_of.get(b, ()))
        rows_N, read_N, write_N = (
            torch.from_numpy(each_B[is_single_B]).to(device)
            for each_B in (query_start_B[:-1].astype(np.int64), states.read_B, states.write_B)
        )
        rows = slice(None) if is_single_B.all() else rows_N
        parts.append(SingleTokens(rows, read_N, write_N, kept))
    for request in np.flatnonzero(~is_single_B).tolist():
        start, end = query_start_B[request : request + 2].tolist()
        parts += _runs(start, end, read[request], write[request], kept_of.get(request, []))
    return parts


def in_steps(part: Part) -> list[Part]:
    """Return parts of one token each, if the request of `part` has started before."""
    if isinstance(part, Run) and part.read != BEGINNING:
        places = range(part.rows.start, part.rows.stop)
        reads = [part.read] + [part.write] * (len(places) - 1)
        return [
            Run(slice(t, t + 1), read, part.write) for t, read in zip(places, reads, strict=True)
        ]
    return [part]


def _runs(start: int, end: int, read: int, write: int, kept: list[tuple[int, int]]) -> list[Run]:
    runs = []
    done = start
    for length, slot in kept:
        at = start + length
        runs.append(Run(slice(done, at), read, write, slot, is_followed=at < end))
        done, read = at, write
    if done < end:
        runs.append(Run(slice(done, end), read, write))
    return runs
