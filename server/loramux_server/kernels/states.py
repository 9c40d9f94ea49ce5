"""Which state slots the recurrent layers read and write for the requests of a batch.

A slot holds the states of all recurrent layers after a prefix of a request. Legend: B requests.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Slots = npt.NDArray[np.int64]

BEGINNING = 0
"""The slot of the initial state, before the first token. It is never written."""


@dataclass(frozen=True, slots=True)
class KeptState:
    """An intermediate state (checkpoint) to store in addition to the final one."""

    request: int
    """Index in the batch."""
    length: int
    """Tokens of the request in this batch after which it is taken: more than one, or all."""
    slot: int


@dataclass(frozen=True, slots=True)
class StateBatch:
    """The state slots of a batch."""

    read_B: Slots
    """Slot of each request's state before the batch."""
    write_B: Slots
    """Slot for its state after the batch; distinct."""
    kept: tuple[KeptState, ...] = ()
    """Ordered by request, then by length."""
