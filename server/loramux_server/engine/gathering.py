"""What is read of a text, chunk by chunk, until all of it is there."""

import numpy as np
import numpy.typing as npt

from loramux_adapters.embedding import Pooling
from loramux_server.engine.request import Request


def gather(request: Request, first: int, read: npt.NDArray[np.float32]) -> None:
    """Take in what is `read` of the tokens from `first` on, a row for each.

    Who lost its blocks begins anew: what comes again takes the place of what was there.
    """
    if request.pooling is not Pooling.MEAN:
        request.numbers[first:] = [row.tobytes() for row in read]
        return
    total = np.zeros(read.shape[1], np.float64)
    if first:
        total += np.frombuffer(request.numbers[0], np.float64)
    # One after the other: the bits of the sum do not depend on how many a chunk has.
    for row in read:
        total += row
    request.numbers = [total.tobytes()]


def gathered(request: Request) -> bytes:
    """Return what came of all tokens of `request`."""
    if request.pooling is not Pooling.MEAN:
        return b"".join(request.numbers)
    mean = np.frombuffer(request.numbers[0], np.float64) / len(request.prompt)
    return mean.astype(np.float32).tobytes()
