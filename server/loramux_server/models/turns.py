"""Parts of a batch that go their own ways, but for linear layers, which see the whole batch.

What is recurrent, and what reads a text as a whole, cannot take requests one behind the other in a
row of tokens, but linear layers can, and have to: only of the whole batch it is known which adapter
each token has. So the rest is computed for each part alone, each in a greenlet. Where they come to
a linear layer they wait for each other, that layer computes the batch, and each goes on with what
is its own.
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
from loramux_server.models.packed_linear import OutputLayer, PackedPart
from loramux_server.models.recurrent.parts import Rows
from loramux_server.models.side_by_side import Places
from loramux_server.models.step import Step

Spans: TypeAlias = tuple[tuple[int, int], ...]
"""First token, and token after the last, of runs of tokens."""
_LAST = 1 << 30
"""Number of the layer that makes logits."""


class Waiting(Protocol):
    """A layer at which parts wait for each other."""

    @property
    def number(self) -> int:
        """Its place among those that a part comes to."""

    side: int
    """Which of the rows of a part it is given: see `LayerTurns.run`."""

    def whole(self, x: torch.Tensor) -> torch.Tensor:
        """Return what it makes of the rows of all parts, as [1, T, N]."""


class Joint(nn.Module, ABC):
    """Something larger at which parts wait for each other, and that knows how to compute them."""

    number: int
    side: int

    @abstractmethod
    def made(self, calls: Sequence[Any]) -> list[Any]:
        """Return what becomes of what each part came with."""


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a part waits for."""

    layer: Waiting | Joint
    x: Any


class LayerTurns:
    """Runs the parts of one batch after another; one for a model."""

    def __init__(self, step: Step) -> None:
        """Begin without parts; `step` tells whose adapters apply to the batch."""
        self.is_running = False
        """Whether there are parts that wait for each other."""
        self.current = 0
        """Number of the part that goes on."""
        self.sees_others = False
        """Whether layers are given other rows of a part than its tokens, as many as it likes."""
        self._step = step
        self._asked: list[torch.Tensor] = []
        self._gathered = _NOTHING
        self._segments: dict[tuple[Spans, tuple[int, ...]], Segments | None] = {}
        """Of some of the tokens, by their runs, and of rows for which these stand."""

    def run(
        self,
        calls: Sequence[Callable[[], Any]],
        rows: Sequence[tuple[Rows | Places, ...]],
        numbers: Sequence[int] = (),
    ) -> list[Any]:
        """Return what each of `calls` gives, which computes one part.

        Args:
            calls: The parts.
            rows: Tokens of the batch that each has. Where layers have sides, those of each side,
                which are slices, in order.
            numbers: The number of each part; how many there are before it if left out.

        Raises:
            NotImplementedError: Parts that are no slices do not come to the same layers.
        """
        numbers = numbers or range(len(calls))
        self.current = numbers[0]
        if len(calls) == 1 and _is_all(rows[0]) and not self.sees_others:
            return [calls[0]()]  # layers are given all tokens of the batch
        parts = [greenlet(call) for call in calls]
        self.is_running = True
        try:
            said: list[Any] = [None] * len(parts)
            for i, part in enumerate(parts):
                self.current = numbers[i]
                said[i] = part.switch()
            while waiting := [i for i, part in enumerate(parts) if not part.dead]:
                # Who has come less far goes first, so that others find it where they are.
                layer = min((said[i].layer for i in waiting), key=lambda one: one.number)
                those = [i for i in waiting if said[i].layer is layer]
                xs = [said[i].x for i in those]
                given = [rows[i][layer.side] for i in those]
                if isinstance(layer, Joint):
                    ys = self._join(layer, xs, given)
                else:
                    ys = self._compute(layer, xs, given, [rows[i][-1] for i in those])
                for i, y in zip(those, ys, strict=True):
                    self.current = numbers[i]
                    said[i] = parts[i].switch(y)
        finally:
            self.is_running = False
            self._asked, self._gathered = [], _NOTHING
            self._segments.clear()
        return said

    @property
    def joins(self) -> bool:
        """Whether what edits modules for one part alone is not in the way of larger things."""
        segments = self._step.segments
        edits = segments.edits if segments else None
        is_plain = not edits or not any(each and (each.modules or each.ends) for each in edits)
        return self.is_running and is_plain

    def wait(self, layer: Waiting, x: torch.Tensor) -> torch.Tensor:
        """Return what `layer` makes of `x`, which a part has, when all parts have come to it."""
        found: torch.Tensor = getcurrent().parent.switch(_Asked(layer, x))
        return found

    def join(self, layer: Joint, call: Any) -> Any:  # noqa: ANN401
        """Return what `layer` makes of `call`, with which a part has come to it, when all have."""
        return getcurrent().parent.switch(_Asked(layer, call))

    def _join(self, layer: Joint, calls: list[Any], rows: list[Rows | Places]) -> list[Any]:
        """Return what `layer` makes of `calls`, each with the last token of those of its part."""
        step = self._step
        of_batch = step.segments
        spans = tuple((each.stop - 1, each.stop) for each in rows if isinstance(each, slice))
        if of_batch and len(spans) < step.num_tokens:
            step.segments = self._within(of_batch, spans)
        self.is_running = False
        made = layer.made(calls)
        self.is_running = True
        step.segments = of_batch
        return made

    def _compute(
        self,
        layer: Waiting,
        xs: list[torch.Tensor],
        rows: list[Rows | Places],
        last: list[Rows | Places],
    ) -> list[torch.Tensor]:
        """Return what `layer` makes of `xs`; `rows` are of its side, and those of the last side."""
        # Layers with the same input know each other by it.
        if not (len(xs) == len(self._asked) and all(map(_is, xs, self._asked))):
            self._gathered = self._gather(xs, rows, last)
            self._asked = xs
        gathered, step = self._gathered, self._step
        of_batch = step.segments
        if gathered.spans and of_batch:
            step.segments = self._within(of_batch, gathered.spans, gathered.borders)
        y = layer.whole(gathered.x)[0]
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
        self, xs: list[torch.Tensor], rows: list[Rows | Places], last: list[Rows | Places]
    ) -> "_Gathered":
        pieces = [
            _tokens(x.reshape(-1, x.shape[-1]), each) for x, each in zip(xs, rows, strict=True)
        ]
        sizes = list(map(len, pieces))
        count = sum(sizes)
        whole = pieces[0].new_empty(1, count, pieces[0].shape[-1])
        if count == self._step.num_tokens and sizes == list(map(_size, rows)):
            for piece, of_it in zip(pieces, rows, strict=True):
                whole[0, of_it.token_T if isinstance(of_it, Places) else of_it] = piece
            return _Gathered(whole)
        slices = [each for each in rows if isinstance(each, slice)]
        ends = [each.stop for each in last if isinstance(each, slice)]
        if len(slices) < len(rows):
            raise NotImplementedError("a layer that goes other ways for other lengths")
        torch.cat(pieces, out=whole[0])
        borders = tuple(itertools.accumulate(sizes, initial=0))
        of_parts = [slice(*pair) for pair in itertools.pairwise(borders)]
        if all(size <= _size(each) for size, each in zip(sizes, slices, strict=True)):
            # Of what it was given before, a part may have the last tokens alone.
            spans = tuple(
                (each.stop - size, each.stop) for size, each in zip(sizes, slices, strict=True)
            )
            return _Gathered(whole, spans, of_parts)
        # Rows that are no tokens have the adapter that the last token has.
        return _Gathered(whole, tuple((end - 1, end) for end in ends), of_parts, borders)


@dataclass(frozen=True, slots=True)
class _Gathered:
    """Rows of several parts, side by side."""

    x: torch.Tensor
    """[1, T, K]."""
    spans: tuple[tuple[int, int], ...] = ()
    """Where they are in the batch, if they are not all of it."""
    rows: list[slice] | None = None
    """Where they are here, then."""
    borders: tuple[int, ...] = ()
    """The first row here of each of `spans`, and the number of all, where tokens there stand for
    others; empty where they are here themselves."""


_NOTHING = _Gathered(torch.empty(0))


class WaitingPart(PackedPart):
    """Stands where a linear layer stood that parts of a batch come to."""

    def __init__(self, part: PackedPart, turns: LayerTurns, side: int = 0) -> None:
        super().__init__(part.packed, part.part)
        self.side = side
        self._turns = turns

    @property
    def number(self) -> int:
        """Twice that of its group: there may be something else before it."""
        return 2 * self.place.group

    def whole(self, x: torch.Tensor) -> torch.Tensor:
        """Return what it makes of the rows of all parts."""
        return self.packed.part(x, self.part)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the layer's output with the adapters' changes of the running step."""
        if self._turns.is_running:
            return self._turns.wait(self, x)
        return super().forward(x)


class WaitingOutput(nn.Module):
    """Stands where the layer stood that makes logits."""

    number = _LAST

    def __init__(self, output: OutputLayer, turns: LayerTurns, side: int) -> None:
        super().__init__()
        self.side = side
        self.output = output
        self._turns = turns

    @property
    def weight(self) -> torch.Tensor:
        """Shape and format of the weight, without numbers."""
        return self.output.weight

    def whole(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits of the rows of all parts."""
        logits: torch.Tensor = self.output(x)
        return logits

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits of `x`."""
        return self._turns.wait(self, x) if self._turns.is_running else self.whole(x)


def _is_all(rows: tuple[Rows | Places, ...]) -> bool:
    """Return whether these rows of a part that is alone are all of the batch, as it has them."""
    if len(rows) == 1:
        return not isinstance(rows[0], Places)
    return sum(_size(of_side) > 0 for of_side in rows) == 1


def _size(rows: Rows | Places) -> int:
    return rows.stop - rows.start if isinstance(rows, slice) else len(rows)


def _tokens(x_NK: torch.Tensor, rows: Rows | Places) -> torch.Tensor:
    """Return those of a part's rows that are tokens."""
    return rows.taken(x_NK) if isinstance(rows, Places) else x_NK


def _of_part(y_TN: torch.Tensor, rows: Rows | Places) -> torch.Tensor:
    """Return the rows of a part where it has them."""
    return rows.spread(y_TN[rows.token_T]) if isinstance(rows, Places) else y_TN[rows]


def _is(one: object, other: object) -> bool:
    return one is other
