"""Output factors and shifts: what adapters do to a layer's output besides the low-rank update.

DoRA, IA3 and trained biases reduce to these, so steps with them run like all others: both vectors
are stored in the slab after the adapter's rank rows, and are applied together with B.

Legend: N output width of a layer.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

FACTOR, SHIFT = 1, 2
"""Bit flags: what is applied to a layer's output."""
VECTORS = 2
"""Rows of float32 that a group takes, over the outputs of all its parts: factors, then shifts.

An adapter with any of them has at least one granule more than its rank needs (`RowSize.rows_of`),
which is at least twice the room needed.
"""


@dataclass(frozen=True, slots=True)
class Affine:
    """`y * factor + shift`, for the output y of a layer with its low-rank change; float32.

    None: not applied.
    """

    factor_N: "torch.Tensor | None" = None
    shift_N: "torch.Tensor | None" = None

    def __bool__(self) -> bool:
        return self.kinds != 0

    @property
    def kinds(self) -> int:
        """The flags `FACTOR` and `SHIFT` of the vectors that are present."""
        return FACTOR * (self.factor_N is not None) + SHIFT * (self.shift_N is not None)

    def of(self, y: "torch.Tensor") -> "torch.Tensor":
        """Return `y`, [..., N], with factor and shift applied; in float32 if there are any."""
        y = y if self.factor_N is None else y * self.factor_N
        return y if self.shift_N is None else y + self.shift_N

    def times(self, factor_N: "torch.Tensor") -> "Affine":
        """Return this followed by a multiplication with `factor_N`."""
        return Affine(
            factor_N if self.factor_N is None else self.factor_N * factor_N,
            None if self.shift_N is None else self.shift_N * factor_N,
        )


def vectors_of(
    affine: Mapping[int, Mapping[int, Affine]],
) -> "Iterator[tuple[int, int, int, torch.Tensor]]":
    """Yield (group, part, 0 for factors or 1 for shifts, vector) of all vectors in `affine`."""
    for group, parts in affine.items():
        for part, each in parts.items():
            for kind, vector_N in enumerate((each.factor_N, each.shift_N)):
                if vector_N is not None:
                    yield group, part, kind, vector_N


def with_vectors(
    affine: Mapping[int, Mapping[int, Affine]], vectors: "Iterable[torch.Tensor]"
) -> dict[int, dict[int, Affine]]:
    """Return `affine` with its vectors replaced by `vectors`, in the order of `vectors_of`."""
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
