"""Results that are read from hidden states: gathered over steps, and reported when complete."""

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


class HiddenResults:
    """Collects the results of `Batch.read`, step by step."""

    def __init__(self, fail: Fail, end: Callable[[int], None]) -> None:
        """Begin with nothing.

        Args:
            fail: Ends a request whose results are not finite.
            end: Removes a request, by its id, once all is reported.
        """
        self._fail = fail
        self._end = end
        self._prompts: list[PromptLogprobs] = []

    def pop_prompts(self) -> list[PromptLogprobs]:
        """Return, once, the log-probabilities of the prompts that are complete."""
        prompts, self._prompts = self._prompts, []
        return prompts

    def take_prompts(self, batch: Batch, read: Sequence[torch.Tensor]) -> None:
        """Collect log-probabilities of prompts."""
        for part, logprobs_TL in zip(batch.read, read, strict=True):
            if not isinstance(part, PromptTokens):
                continue
            request = part.request
            if logprobs_TL.isnan().any():
                self._fail(request, "ADAPTER_NOT_FINITE", FAULTS["ADAPTER_NOT_FINITE"])
                continue
            found = request.gathered.prompt_logprobs
            found.append(logprobs_TL.numpy().tobytes())
            request.num_logprobs_done += len(part.tokens)
            if part.is_last:
                numbers = b"".join(found)
                found.clear()
                request.num_logprobs_done = len(request.prompt)
                finish = None if request.continues else Finish.LENGTH
                self._prompts.append(PromptLogprobs(request.request_id, numbers, finish))

    def take_scores(self, batch: Batch, read: Sequence[torch.Tensor]) -> list[Scores]:
        """Collect what heads read; return complete results and end requests that are done."""
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
                done.append(Scores(request.request_id, pooled_result(request)))
                self._end(request.request_id)
        return done


def gather(request: Request, first: int, read: npt.NDArray[np.float32]) -> None:
    """Store what was `read` of the tokens from number `first` on, a row for each.

    A preempted request starts over, and its new results replace the old ones. Numbers below 0 are
    virtual tokens: PEFT returns logits for prepended embeddings, too, which callers do not expect.
    """
    if request.pooling is not Pooling.MEAN:
        rows = read[max(0, -first) :]
        request.gathered.numbers[max(0, first) :] = [row.tobytes() for row in rows]
        return
    total = np.zeros(read.shape[1], np.float64)
    if first:
        total += np.frombuffer(request.gathered.numbers[0], np.float64)
    # Added one by one, so that the bits of the sum do not depend on the sizes of chunks.
    for row in read:
        total += row
    request.gathered.numbers = [total.tobytes()]


def pooled_result(request: Request) -> bytes:
    """Return the complete result of `request`."""
    if request.pooling is not Pooling.MEAN:
        return b"".join(request.gathered.numbers)
    num_read = len(request.prompt) - request.num_fillable
    mean = np.frombuffer(request.gathered.numbers[0], np.float64) / num_read
    return mean.astype(np.float32).tobytes()
