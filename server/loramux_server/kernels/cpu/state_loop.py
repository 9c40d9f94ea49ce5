"""Compiled loops that update recurrent states in their slots, and their common job fields."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from loramux_server.kernels.cpu.parallel import Kernel

_SHARED = ("state", "read", "write", "out", "requests", "heads", "group")
"""Addresses of states, of slots to read and to write, and of the output; then sizes."""


def state_job(*own: str) -> np.dtype[Any]:
    """Return the job type of a loop: its `own` fields (tensors and sizes), then the common ones."""
    return np.dtype([(name, np.int64) for name in (*own, *_SHARED)], align=True)


class StateLoop:
    """A compiled loop over the heads of all requests."""

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
            given: Input tensors of all requests, by job field.
            state_SH: The states of all slots, head by head, float32.
            read_T: Slot to read each request's state from.
            write_T: Slot to write it to.
            out: The output, float32, modified in place.
            group: Heads that share one key head or group of the inputs.
            sizes: The other job fields.
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
