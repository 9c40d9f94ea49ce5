"""Which adapter applies to which tokens of a batch."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from loramux_server.lora.edits import Edits
from loramux_server.lora.virtual import Virtual
from loramux_server.wire.weight_format import WeightFormat

if TYPE_CHECKING:
    from loramux_server.lora.head import Head, LayeredHead, LayersHead

Int32 = npt.NDArray[np.int32]
Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Residence:
    """A resident adapter: its place in the slab, ranks, scales and edits."""

    row: int
    """First rank row."""
    size: int
    """Number of rank rows."""
    format: WeightFormat
    rank_GP: Int32
    """Actual rank in each part of each group; 0 where the adapter does not change the layer."""
    scale_GP: Float32
    """Scale of each layer's change."""
    edits: Edits | None = None
    """Changes besides the low-rank ones."""
    affine_GP: Int32 | None = None
    """`Affine.kinds` of each layer; None if there are no vectors. These follow the last row."""

    @property
    def virtual(self) -> Virtual | None:
        """Virtual tokens before every prompt."""
        return self.edits.virtual if self.edits else None

    @property
    def changes(self) -> bool:
        """Whether it changes any layer or module, besides inserting virtual tokens."""
        return not self.virtual or (self.edits is not None and self.edits.changes_layers)

    @property
    def head(self) -> "Head | LayeredHead | LayersHead | None":
        """The head that replaces the output layer (LM head)."""
        return self.edits.head if self.edits else None


@dataclass(frozen=True, slots=True)
class Segments:
    """Runs of tokens that share an adapter, in batch order.

    S segments, G groups of layers, P most parts of a group. Tokens in no segment have no adapter.
    """

    start_S: Int32
    """First token."""
    end_S: Int32
    """Token after the last."""
    row_S: Int32
    size_S: Int32
    format_S: Int32
    rank_GSP: Int32
    scale_GSP: Float32
    edits: tuple[Edits | None, ...] | None = None
    """Edits of each segment's adapter; None if no adapter has edits outside the slab."""
    affine_GSP: Int32 | None = None
    """`Affine.kinds`; None if there are no vectors."""

    @staticmethod
    def build(start: list[int], end: list[int], adapters: list[Residence]) -> "Segments":
        """Return the segments of `adapters`, in order."""
        edits = tuple(adapter.edits for adapter in adapters)
        return Segments(
            start_S=np.array(start, np.int32),
            end_S=np.array(end, np.int32),
            row_S=np.array([adapter.row for adapter in adapters], np.int32),
            size_S=np.array([adapter.size for adapter in adapters], np.int32),
            format_S=np.array([adapter.format for adapter in adapters], np.int32),
            rank_GSP=np.stack([adapter.rank_GP for adapter in adapters], axis=1),
            scale_GSP=np.stack([adapter.scale_GP for adapter in adapters], axis=1),
            edits=edits if any(each and each.has_edits_outside_slab for each in edits) else None,
            affine_GSP=_kinds(adapters),
        )

    @property
    def needs_model_layers(self) -> bool:
        """Whether any adapter has edits for which the model's own layers have to run."""
        return any(edits and edits.needs_model_layers for edits in self.edits or ())

    def edited(self) -> Iterator[tuple[int, int, Edits]]:
        """Yield (first token, token after the last, edits) of the segments that have edits."""
        if self.edits is None:
            return
        borders = self.start_S.tolist(), self.end_S.tolist()
        for start, end, edits in zip(*borders, self.edits, strict=True):
            if edits:
                yield start, end, edits

    def within(self, spans: Sequence[tuple[int, int]]) -> "Segments | None":
        """Return the segments after keeping only the tokens in `spans`; None if none are left.

        Args:
            spans: (first token, token after the last) of each run to keep, in order.
        """
        # Number of kept tokens before each token.
        count_T = np.zeros(max(end for _, end in spans) + 1, np.int32)
        for start, end in spans:
            count_T[start + 1 : end + 1] = 1
        count_T = np.cumsum(count_T, dtype=np.int32)
        last = len(count_T) - 1
        start_S, end_S = (count_T[np.minimum(side, last)] for side in (self.start_S, self.end_S))
        is_left = end_S > start_S
        if not is_left.any():
            return None
        return replace(self, start_S=start_S, end_S=end_S).select(is_left)

    def spread(self, borders: Sequence[int]) -> "Segments":
        """Return the segments of a batch of rows, several per token.

        Args:
            borders: The first row of each token, followed by the number of rows.
        """
        border_T = np.array(borders, np.int32)
        return replace(self, start_S=border_T[self.start_S], end_S=border_T[self.end_S])

    def select(self, mask: npt.NDArray[np.bool_]) -> "Segments":
        """Return the segments selected by `mask`, [S]."""
        return Segments(
            self.start_S[mask],
            self.end_S[mask],
            self.row_S[mask],
            self.size_S[mask],
            self.format_S[mask],
            np.ascontiguousarray(self.rank_GSP[:, mask]),
            np.ascontiguousarray(self.scale_GSP[:, mask]),
            None if self.edits is None else tuple(itertools.compress(self.edits, mask)),
            None if self.affine_GSP is None else np.ascontiguousarray(self.affine_GSP[:, mask]),
        )


def _kinds(adapters: list[Residence]) -> Int32 | None:
    """Return `Affine.kinds` of the adapters, as [G, S, P]; None if there are no vectors."""
    if all(adapter.affine_GP is None for adapter in adapters):
        return None
    none = np.zeros_like(adapters[0].rank_GP)
    return np.stack(
        [none if each.affine_GP is None else each.affine_GP for each in adapters], axis=1
    )
