"""What adapters make of a layer's output besides adding to it: a factor and a shift of each column.

Of LoRA's relatives DoRA, IA3 and trained biases are no more than that, so steps with them go the
way of all others: both vectors lie in the slab behind the rank rows of their adapter, and whoever
applies B applies them.

Legend: N output width of a layer.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

FACTOR, SHIFT = 1, 2
"""What is done to a layer, as bits of one number."""
VECTORS = 2
"""Rows of float32 that a group takes, over the outputs of all its parts: factors, then shifts.

An adapter that has any has a granule more than its rank takes (`RowSize.rows_of`), which is twice
as much at least.
"""


@dataclass(frozen=True, slots=True)
class Affine:
    """`y * factor + shift`, for the output y of a layer with its low-rank change; float32.

    What is None is not done.
    """

    factor_N: "torch.Tensor | None" = None
    shift_N: "torch.Tensor | None" = None

    def __bool__(self) -> bool:
        return self.kinds != 0

    @property
    def kinds(self) -> int:
        """`FACTOR` and `SHIFT`, as far as they are there."""
        return FACTOR * (self.factor_N is not None) + SHIFT * (self.shift_N is not None)

    def of(self, y: "torch.Tensor") -> "torch.Tensor":
        """Return what becomes of `y`, [..., N]; in float32, if anything does."""
        y = y if self.factor_N is None else y * self.factor_N
        return y if self.shift_N is None else y + self.shift_N

    def times(self, factor_N: "torch.Tensor") -> "Affine":
        """Return the same with `factor_N` applied after it."""
        return Affine(
            factor_N if self.factor_N is None else self.factor_N * factor_N,
            None if self.shift_N is None else self.shift_N * factor_N,
        )


def vectors_of(
    affine: Mapping[int, Mapping[int, Affine]],
) -> "Iterator[tuple[int, int, int, torch.Tensor]]":
    """Yield group, layer, 0 for factors or 1 for shifts, and the vector, for all that there are."""
    for group, parts in affine.items():
        for part, each in parts.items():
            for kind, vector_N in enumerate((each.factor_N, each.shift_N)):
                if vector_N is not None:
                    yield group, part, kind, vector_N


def with_vectors(
    affine: Mapping[int, Mapping[int, Affine]], vectors: "Iterable[torch.Tensor]"
) -> dict[int, dict[int, Affine]]:
    """Return `affine` with `vectors` in place of what `vectors_of` yields, in its order."""
    following = iter(vectors)
    return {
        group: {
            part: Affine(
                None if each.factor_N is None else next(following),
                None if each.shift_N is None else next(following),
            )
            for part, each in parts.items()
        }
        for group, parts in affine.items()
    }
