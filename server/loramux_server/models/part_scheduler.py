"""Coroutines for parts of a batch, which meet at linear layers.

Recurrent layers and models that read whole texts cannot take requests concatenated in one row.
Linear layers can, and must: adapters are assigned to tokens of the whole batch. So each part runs
in a greenlet of its own. At a linear layer the parts wait for each other, the layer is computed for
the whole batch, and each part continues with its rows.
"""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import torch
from greenlet import getcurrent, greenlet
from torch import nn

from loramux_server.lora.segments import Segments
from loramux_server.models.padding import PaddedLayout
from loramux_server.models.recurrent.parts import Rows
from loramux_server.models.step import Step

Spans: TypeAlias = tuple[tuple[int, int], ...]
"""(start, end) of runs of tokens."""


class SyncPoint(Protocol):
    """A layer at which parts wait for each other."""

    @property
    def number(self) -> int:
        """Its order: parts reach layers with smaller numbers first."""

    side: int
    """Which rows of a part it sees: see `PartScheduler.run`."""

    def compute_all(self, x: torch.Tensor) -> torch.Tensor:
        """Return its output for the rows of all parts, [1, T, N]."""


class JointModule(nn.Module, ABC):
    """A larger module at which parts wait for each other, and that computes them itself."""

    number: int
    side: int

    @abstractmethod
    def run(self, calls: Sequence[Any]) -> list[Any]:
        """Return the result for each part's call."""


@dataclass(frozen=True, slots=True)
class _Pending:
    """What a part waits for."""

    layer: SyncPoint | JointModule
    x: Any


class PartScheduler:
    """Runs the parts of a batch interleaved; there is one for a model."""

    def __init__(self, step: Step) -> None:
        """Start without parts; `step` tells which adapters apply to the batch."""
        self.is_running = False
        """Whether parts are running that wait for each other."""
        self.current = 0
        """Number of the part that is running."""
        self.has_other_rows = False
        """Whether some layers see rows of a part that are not its tokens, in any number."""
        self._step = step
        self._gathered_inputs: list[torch.Tensor] = []
        self._gathered = _NOTHING
        self._segments: dict[tuple[Spans, tuple[int, ...]], Segments | None] = {}
        """Cached segments of some tokens, or of rows that these tokens stand for; by spans and row
        borders."""

    def run(
        self,
        calls: Sequence[Callable[[], Any]],
        rows: Sequence[tuple[Rows | PaddedLayout, ...]],
        numbers: Sequence[int] = (),
    ) -> list[Any]:
        """Return the result of each of `calls`, each of which computes one part.

        Args:
            calls: The parts.
            rows: Tokens of the batch that belong to each part. If layers have sides, those of each
                side, as slices in order.
            numbers: The number of each part; by default its index.

        Raises:
            NotImplementedError: Parts that are not slices do not reach the same layers.
        """
        numbers = numbers or range(len(calls))
        self.current = numbers[0]
        if len(calls) == 1 and _is_all(rows[0]) and not self.has_other_rows:
            return [calls[0]()]  # the layers see exactly the batch
        parts = [greenlet(call) for call in calls]
        self.is_running = True
        try:
            yielded: list[Any] = [None] * len(parts)
            for i, part in enumerate(parts):
                self.current = numbers[i]
                yielded[i] = part.switch()
            while waiting := [i for i, part in enumerate(parts) if not part.dead]:
                # The part that is furthest behind goes first, so that the others can join it.
                layer = min((yielded[i].layer for i in waiting), key=lambda one: one.number)
                those = [i for i in waiting if yielded[i].layer is layer]
                xs = [yielded[i].x for i in those]
                given = [rows[i][layer.side] for i in those]
                if isinstance(layer, JointModule):
                    ys = self._join(layer, xs, given)
                else:
                    ys = self._compute(layer, xs, given, [rows[i][-1] for i in those])
                for i, y in zip(those, ys, strict=True):
                    self.current = numbers[i]
                    yielded[i] = parts[i].switch(y)
        finally:
            self.is_running = False
            self._gathered_inputs, self._gathered = [], _NOTHING
            self._segments.clear()
        return yielded

    @property
    def joins(self) -> bool:
        """Whether joint layers can be used: parts are running, and no module is edited."""
        segments = self._step.segments
        edits = segments.edits if segments else None
        is_plain = not edits or not any(
            each and (each.modules or each.outer_modules) for each in edits
        )
        return self.is_running and is_plain

    def wait(self, layer: SyncPoint, x: torch.Tensor) -> torch.Tensor:
        """Wait until all parts have reached `layer`; return its output for `x` of this part."""
        found: torch.Tensor = getcurrent().parent.switch(_Pending(layer, x))
        return found

    def join(self, layer: JointModule, call: Any) -> Any:  # noqa: ANN401
        """Wait until all parts have reached `layer`; return its result for `call` of this part."""
        return getcurrent().parent.switch(_Pending(layer, call))

    def _join(
        self, layer: JointModule, calls: list[Any], rows: list[Rows | PaddedLayout]
    ) -> list[Any]:
        """Return the results of `layer` for `calls`, each with the last token of its part."""
        step = self._step
        of_batch = step.segments
        spans = tuple((each.stop - 1, each.stop) for each in rows if isinstance(each, slice))
        if of_batch and len(spans) < step.num_tokens:
            step.segments = self._within(of_batch, spans)
        self.is_running = False
        made = layer.run(calls)
        self.is_running = True
        step.segments = of_batch
        return made

    def _compute(
        self,
        layer: SyncPoint,
        xs: list[torch.Tensor],
        rows: list[Rows | PaddedLayout],
        last: list[Rows | PaddedLayout],
    ) -> list[torch.Tensor]:
        """Return the outputs of `layer` for `xs`; `rows` are of its side, `last` of the last."""
        # Layers that share an input recognize it by identity.
        if not (len(xs) == len(self._gathered_inputs) and all(map(_is, xs, self._gathered_inputs))):
            self._gathered = self._gather(xs, rows, last)
            self._gathered_inputs = xs
        gathered, step = self._gathered, self._step
        of_batch = step.segments
        if gathered.spans and of_batch:
            step.segments = self._within(of_batch, gathered.spans, gathered.borders)
        y = layer.compute_all(gathered.x)[0]
        step.segments = of_batch
        return [
            _of_part(y, of_it).view(*x.shape[:-1], y.shape[-1])
            for x, of_it in zip(xs, gathered.rows or rows, strict=True)
        ]

    def _within(
        self, segments: Segments, spans: Spans, borders: tuple[int, ...] = ()
    ) -> Segments | None:
        if (spans, borders) not in self._segments:
            found = segments.within(spans)
            self._segments[spans, borders] = found.spread(borders) if found and borders else found
        return self._segments[spans, borders]

    def _gather(
        self,
        xs: list[torch.Tensor],
        rows: list[Rows | PaddedLayout],
        last: list[Rows | PaddedLayout],
    ) -> "_Gathered":
        pieces = [
            _tokens(x.reshape(-1, x.shape[-1]), each) for x, each in zip(xs, rows, strict=True)
        ]
        sizes = list(map(len, pieces))
        count = sum(sizes)
        whole = pieces[0].new_empty(1, count, pieces[0].shape[-1])
        if count == self._step.num_tokens and sizes == list(map(_size, rows)):
            for piece, of_it in zip(pieces, rows, strict=True):
                whole[0, of_it.token_T if isinstance(of_it, PaddedLayout) else of_it] = piece
            return _Gathered(whole)
        slices = [each for each in rows if isinstance(each, slice)]
        ends = [each.stop for each in last if isinstance(each, slice)]
        if len(slices) < len(rows):
            raise NotImplementedError("a layer takes different paths for different lengths")
        torch.cat(pieces, out=whole[0])
        borders = tuple(itertools.accumulate(sizes, initial=0))
        of_parts = [slice(*pair) for pair in itertools.pairwise(borders)]
        if all(size <= _size(each) for size, each in zip(sizes, slices, strict=True)):
            # A layer may see only the last tokens of a part.
            spans = tuple(
                (each.stop - size, each.stop) for size, each in zip(sizes, slices, strict=True)
            )
            return _Gathered(whole, spans, of_parts)
        # Rows that are not tokens get the adapter of the part's last token.
        return _Gathered(whole, tuple((end - 1, end) for end in ends), of_parts, borders)


@dataclass(frozen=True, slots=True)
class _Gathered:
    """Rows of several parts, concatenated."""

    x: torch.Tensor
    """[1, T, K]."""
    spans: tuple[tuple[int, int], ...] = ()
    """Their (start, end) in the batch, unless they are all of it."""
    rows: list[slice] | None = None
    """Their slices in `x`, in that case."""
    borders: tuple[int, ...] = ()
    """If the tokens of `spans` stand for other rows: the first row in `x` of each span, and the
    total. Else empty."""


_NOTHING = _Gathered(torch.empty(0))


def _is_all(rows: tuple[Rows | PaddedLayout, ...]) -> bool:
    """Return whether these rows of the only part are exactly the batch."""
    if len(rows) == 1:
        return not isinstance(rows[0], PaddedLayout)
    return sum(_size(of_side) > 0 for of_side in rows) == 1


def _size(rows: Rows | PaddedLayout) -> int:
    return rows.stop - rows.start if isinstance(rows, slice) else len(rows)


def _tokens(x_NK: torch.Tensor, rows: Rows | PaddedLayout) -> torch.Tensor:
    """Return the rows of a part, without padding."""
    return rows.without_padding(x_NK) if isinstance(rows, PaddedLayout) else x_NK


def _of_part(y_TN: torch.Tensor, rows: Rows | PaddedLayout) -> torch.Tensor:
    """Return a part's rows of `y_TN`, with padding if it has any."""
    return rows.pad(y_TN[rows.token_T]) if isinstance(rows, PaddedLayout) else y_TN[rows]


def _is(one: object, other: object) -> bool:
    return one is other
