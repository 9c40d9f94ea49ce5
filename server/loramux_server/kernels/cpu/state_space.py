"""The state space model on a CPU, compiled: each state is read and written once, in its slot."""

from typing import Any

import numba
import numpy as np
import torch

from loramux_server.kernels import state_space as definition
from loramux_server.kernels.cpu.parallel import float32_at, int64_at, share_of
from loramux_server.kernels.cpu.simd import WIDTH, load, splat, store, total
from loramux_server.kernels.cpu.state_loop import StateLoop, state_job

JOB = state_job("x", "decay", "b", "c", "head_width", "state_width")


def state_space_kernel(pointer: Any) -> None:
    """Implement `kernels.state_space`; the heads of all requests are split among the threads."""
    job = numba.carray(pointer, 1)[0]
    first, last = share_of(job.requests * job.heads)
    row_bytes = 4 * job.state_width
    size = job.head_width * row_bytes
    reads, writes = int64_at(job.read), int64_at(job.write)
    decays, xs, outs = float32_at(job.decay), float32_at(job.x), float32_at(job.out)
    for row in range(first, last):
        request, head = row // job.heads, row % job.heads
        b = job.b + row_bytes * (row // job.group)
        c = job.c + row_bytes * (row // job.group)
        decay = splat(decays[row])
        source = job.state + (reads[request] * job.heads + head) * size
        target = job.state + (writes[request] * job.heads + head) * size
        for p in range(job.head_width):
            x = splat(xs[row * job.head_width + p])
            read = splat(np.float32(0.0))
            for n in range(0, row_bytes, 4 * WIDTH):
                at = p * row_bytes + n
                state = load(source + at) * decay + x * load(b + n)
                store(target + at, state)
                read = read + state * load(c + n)
            outs[row * job.head_width + p] = total(read)


class StateSpaceCpu:
    """`state_space` for float32 on a CPU."""

    def __init__(self) -> None:
        self._loop = StateLoop(state_space_kernel, JOB)

    def __call__(
        self,
        x_THP: torch.Tensor,
        decay_TH: torch.Tensor,
        b_TGN: torch.Tensor,
        c_TGN: torch.Tensor,
        state_SHPN: torch.Tensor,
        read_T: torch.Tensor,
        write_T: torch.Tensor,
    ) -> torch.Tensor:
        """Implement `loramux_server.kernels.state_space.state_space`."""
        heads, head_width, state_width = state_SHPN.shape[1:]
        groups = b_TGN.shape[1]
        if state_SHPN.dtype != torch.float32 or state_width % WIDTH or heads % groups:
            return definition.state_space(
                x_THP, decay_TH, b_TGN, c_TGN, state_SHPN, read_T, write_T
            )
        out_THP = torch.empty(x_THP.shape, dtype=torch.float32)
        self._loop.run(
            {"x": x_THP, "decay": decay_TH, "b": b_TGN, "c": c_TGN},
            state_SHPN,
            read_T,
            write_T,
            out_THP,
            group=heads // groups,
            head_width=head_width,
            state_width=state_width,
        )
        return out_THP
