"""What was read of tokens beside what was chosen: kept until all of it is there, and told then."""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from loramux_adapters.embedding import Pooling
from loramux_server.engine.batch import Batch, PromptTokens, ReadTokens
from loramux_server.engine.request import Request
from loramux_server.engine.sampler import FAULTS
from loramux_server.wire.messages import Finish, PromptLogprobs, Scores


class Fail(Protocol):
    """Ends a request without a result."""

    def __call__(self, request: Request, reason: str, message: str) -> None:
        """End it; `reason` is a name of `loramux.v1.ErrorReason` without its prefix."""


class Readings:
    """Takes in what comes of `Batch.read`, step after step."""

    def __init__(self, fail: Fail, end: Callable[[int], None]) -> None:
        """Begin with nothing.

        Args:
            fail: Ends a request of which something is not finite.
            end: Forgets a request, by its id, of which all is told.
        """
        self._fail = fail
        self._end = end
        self._prompts: list[PromptLogprobs] = []

    def pop_prompts(self) -> list[PromptLogprobs]:
        """Return, once, the log-probabilities of the prompts that are whole."""
        prompts, self._prompts = self._prompts, []
        return prompts

    def take_prompts(self, batch: Batch, read: Sequence[torch.Tensor]) -> None:
        """Keep what is told of prompts."""
        for part, told_TL in zip(batch.read, read, strict=True):
            if not isinstance(part, PromptTokens):
                continue
            request = part.request
            if told_TL.isnan().any():
                self._fail(request, "ADAPTER_NOT_FINITE", FAULTS["ADAPTER_NOT_FINITE"])
                continue
            found = request.gathered.prompt_logprobs
            found.append(told_TL.numpy().tobytes())
            request.num_told += len(part.tokens)
            if part.is_last:
                numbers = b"".join(found)
                found.clear()
                request.num_told = len(request.prompt)
                finish = None if request.continues else Finish.LENGTH
                self._prompts.append(PromptLogprobs(request.request_id, numbers, finish))

    def take_scores(self, batch: Batch, read: Sequence[torch.Tensor]) -> list[Scores]:
        """Keep what was read of tokens, and end and return what is whole; end what has no more."""
        done: list[Scores] = []
        for part, read_TN in zip(batch.read, read, strict=True):
            request = part.request
            if not isinstance(part, ReadTokens):
                if part.is_last and not request.continues:
                    self._end(request.request_id)
                continue
            if not read_TN.isfinite().all():
                self._fail(request, "ADAPTER_NOT_FINITE", FAULTS["ADAPTER_NOT_FINITE"])
                continue
            gather(request, part.first, read_TN.numpy())
            if not request.num_uncomputed:
                done.append(Scores(request.request_id, gathered(request)))
                self._end(request.request_id)
        return done


def gather(request: Request, first: int, read: npt.NDArray[np.float32]) -> None:
    """Take in what is `read` of the tokens from `first` on, a row for each.

    Who lost its blocks begins anew: what comes again takes the place of what was there. Numbers
    below 0 are of virtual tokens: PEFT returns logits of those whose embeddings it puts before a
    text, too, and callers know nothing of them.
    """
    if request.pooling is not Pooling.MEAN:
        rows = read[max(0, -first) :]
        request.gathered.numbers[max(0, first) :] = [row.tobytes() for row in rows]
        return
    total = np.zeros(read.shape[1], np.float64)
    if first:
        total += np.frombuffer(request.gathered.numbers[0], np.float64)
    # One after the other: the bits of the sum do not depend on how many a chunk has.
    for row in read:
        total += row
    request.gathered.numbers = [total.tobytes()]


def gathered(request: Request) -> bytes:
    """Return what came of all tokens of `request`."""
    if request.pooling is not Pooling.MEAN:
        return b"".join(request.gathered.numbers)
    num_read = len(request.prompt) - request.num_fillable
    mean = np.frombuffer(request.gathered.numbers[0], np.float64) / num_read
    return mean.astype(np.float32).tobytes()
