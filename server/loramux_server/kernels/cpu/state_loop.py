"""Loops that change states in their slots, and what all of them are told alike."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from loramux_server.kernels.cpu.parallel import Kernel

_SHARED = ("state", "read", "write", "out", "requests", "heads", "group")
"""Where states lie, in which slots they are found and left, where results go; and how many."""


def state_job(*own: str) -> np.dtype[Any]:
    """Return the job of a loop: what is its `own`, tensors and sizes, and what each has."""
    return np.dtype([(name, np.int64) for name in (*own, *_SHARED)], align=True)


class StateLoop:
    """A compiled loop over the heads of all requests; each state is read and written once."""

    def __init__(self, function: Callable[[Any], None], job: np.dtype[Any]) -> None:
        """Compile `function`, which takes a pointer to a `job`; see `state_job`."""
        self._job = np.zeros(1, job)
        self._kernel = Kernel(function, self._job)

    def run(
        self,
        given: Mapping[str, torch.Tensor],
        state_SH: torch.Tensor,
        read_T: torch.Tensor,
        write_T: torch.Tensor,
        out: torch.Tensor,
        *,
        group: int,
        **sizes: int,
    ) -> None:
        """Run the loop.

        Args:
            given: What each request brings, by its name in the job.
            state_SH: The states of all slots, a head after the other, float32.
            read_T: Slot in which the state of each request is found.
            write_T: Slot in which it is left.
            out: Where results go, float32.
            group: Heads that share what is given once for them.
            sizes: The other numbers of the job.
        """
        held = {name: each.float().contiguous() for name, each in given.items()}
        job = self._job[0]
        for name, each in held.items():
            job[name] = each.data_ptr()
        job["state"], job["out"] = state_SH.data_ptr(), out.data_ptr()
        job["read"], job["write"] = read_T.data_ptr(), write_T.data_ptr()
        job["requests"], job["heads"], job["group"] = len(read_T), state_SH.shape[1], group
        for name, size in sizes.items():
            job[name] = size
        self._kernel.run(len(read_T) * state_SH[0].numel())
