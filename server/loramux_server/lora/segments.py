"""Which adapter applies to which tokens of a batch."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Int32 = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Segments:
    """Runs of tokens that share an adapter, in the order of the batch.

    S segments, G groups of layers, P parts of a group at most. Tokens in no segment belong to the
    base model alone.
    """

    start_S: Int32
    """First token."""
    end_S: Int32
    """Token after the last."""
    row_S: Int32
    """First row of the adapter in the slab."""
    size_S: Int32
    """Rows that the adapter takes in the slab: its rank, rounded up."""
    rank_GSP: Int32
    """True rank in each part of each group; 0 where the adapter does not change the layer."""
