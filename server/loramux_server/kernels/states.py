"""Where recurrent layers find and leave what they know of the requests of a batch.

A slot holds the states of all recurrent layers after some tokens of a request. Legend: B requests.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Slots = npt.NDArray[np.int64]

BEGINNING = 0
"""The slot of what is known before the first token: nothing. It is never written."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A state on the way that is kept beside the one at the end."""

    request: int
    """Number in the batch."""
    length: int
    """Tokens of the request in this batch after which it is the state: more than one, or all."""
    slot: int


@dataclass(frozen=True, slots=True)
class StateBatch:
    """The slots of a batch."""

    read_B: Slots
    """What is known of each request before the batch."""
    write_B: Slots
    """Where that goes which is known after it; no two are the same."""
    kept: tuple[Kept, ...] = ()
    """In order, and of a request in the order of their lengths."""
