"""The gated delta rule on a CPU, compiled: states are updated in their slots."""

from typing import Any

import numba
import numpy as np
import torch

from loramux_server.kernels import delta_rule as definition
from loramux_server.kernels.cpu.parallel import float32_at, int64_at, share_of
from loramux_server.kernels.cpu.simd import WIDTH, load, splat, store
from loramux_server.kernels.cpu.state_loop import StateLoop, state_job

_BLOCK = 4 * WIDTH
"""Value channels processed at a time: with 128 key channels they fit the L1 cache."""
JOB = state_job("q", "k", "v", "decay", "beta", "key_width", "value_width")


def delta_rule_kernel(pointer: Any) -> None:
    """Implement `kernels.delta_rule`; the heads of all requests are split among the threads."""
    job = numba.carray(pointer, 1)[0]
    first, last = share_of(job.requests * job.heads)
    row_bytes = 4 * job.value_width
    size = job.key_width * row_bytes
    reads, writes = int64_at(job.read), int64_at(job.write)
    betas = float32_at(job.beta)
    for row in range(first, last):
        request, head = row // job.heads, row % job.heads
        of_keys = 4 * job.key_width * (row // job.group)
        q, k = float32_at(job.q + of_keys), float32_at(job.k + of_keys)
        decay = float32_at(job.decay + 4 * job.key_width * row)
        beta = splat(betas[row])
        source = job.state + (reads[request] * job.heads + head) * size
        target = job.state + (writes[request] * job.heads + head) * size
        for at in range(0, row_bytes, 4 * 4 * WIDTH):
            v, out = job.v + row * row_bytes + at, job.out + row * row_bytes + at
            a = b = c = d = splat(np.float32(0.0))
            for i in range(job.key_width):
                factor = splat(k[i] * decay[i])
                s = source + i * row_bytes + at
                a = a + factor * load(s)
                b = b + factor * load(s + 4 * WIDTH)
                c = c + factor * load(s + 8 * WIDTH)
                d = d + factor * load(s + 12 * WIDTH)
            a = (load(v) - a) * beta
            b = (load(v + 4 * WIDTH) - b) * beta
            c = (load(v + 8 * WIDTH) - c) * beta
            d = (load(v + 12 * WIDTH) - d) * beta
            e = f = g = h = splat(np.float32(0.0))
            for i in range(job.key_width):
                factor, key, query = splat(decay[i]), splat(k[i]), splat(q[i])
                s, t = source + i * row_bytes + at, target + i * row_bytes + at
                x = load(s) * factor + key * a
                store(t, x)
                e = e + query * x
                x = load(s + 4 * WIDTH) * factor + key * b
                store(t + 4 * WIDTH, x)
                f = f + query * x
                x = load(s + 8 * WIDTH) * factor + key * c
                store(t + 8 * WIDTH, x)
                g = g + query * x
                x = load(s + 12 * WIDTH) * factor + key * d
                store(t + 12 * WIDTH, x)
                h = h + query * x
            store(out, e)
            store(out + 4 * WIDTH, f)
            store(out + 8 * WIDTH, g)
            store(out + 12 * WIDTH, h)


class DeltaRuleCpu:
    """`delta_rule` for float32 on a CPU."""

    def __init__(self) -> None:
        self._loop = StateLoop(delta_rule_kernel, JOB)

    def __call__(
        self,
        q_TJK: torch.Tensor,
        k_TJK: torch.Tensor,
        v_THV: torch.Tensor,
        decay_THK: torch.Tensor,
        beta_TH: torch.Tensor,
        state_SHKV: torch.Tensor,
        read_T: torch.Tensor,
        write_T: torch.Tensor,
    ) -> torch.Tensor:
        """Implement `loramux_server.kernels.delta_rule.delta_rule`."""
        heads, key_width, value_width = state_SHKV.shape[1:]
        key_heads = k_TJK.shape[1]
        if state_SHKV.dtype != torch.float32 or value_width % _BLOCK or heads % key_heads:
            return definition.delta_rule(
                q_TJK, k_TJK, v_THV, decay_THK, beta_TH, state_SHKV, read_T, write_T
            )
        out_THV = torch.empty(v_THV.shape, dtype=torch.float32)
        self._loop.run(
            {"q": q_TJK, "k": k_TJK, "v": v_THV, "decay": decay_THK, "beta": beta_TH},
            state_SHKV,
            read_T,
            write_T,
            out_THV,
            group=heads // key_heads,
            key_width=key_width,
            value_width=value_width,
        )
        return out_THV
