"""The gated delta rule of one token: the compiled loop is what its definition says."""

import pytest
import torch

from loramux_server.kernels.cpu.delta_rule import DeltaRuleCpu
from loramux_server.kernels.delta_rule import delta_rule


def numbers(
    requests: int, key_heads: int, heads: int, key_width: int, value_width: int, slots: int
) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)

    def random(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator)

    q, k = (random(requests, key_heads, key_width) * key_width**-0.5 for _ in range(2))
    decay = random(requests, heads, key_width).sigmoid()
    beta = random(requests, heads).sigmoid()
    v, state = random(requests, heads, value_width), random(slots, heads, key_width, value_width)
    return [q, k, v, decay, beta, state]


def test_the_definition_is_the_recurrence() -> None:
    q, k, v, decay, beta, state = numbers(1, 1, 2, 3, 4, 2)
    wanted = state.clone()
    for head in range(2):
        s = decay[0, head][:, None] * state[0, head]
        s = s + torch.outer(k[0, 0], beta[0, head] * (v[0, head] - k[0, 0] @ s))
        wanted[1, head] = s
    out = delta_rule(q, k, v, decay, beta, state, torch.tensor([0]), torch.tensor([1]))
    torch.testing.assert_close(state, wanted)
    torch.testing.assert_close(out[0], torch.stack([q[0, 0] @ s for s in wanted[1]]))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("requests", "key_heads", "heads", "key_width", "value_width"),
    [
        (1, 1, 1, 128, 128), (5, 2, 4, 64, 64), (3, 16, 16, 24, 192), (2, 2, 2, 8, 8),
        (4, 1, 3, 7, 64),
    ],
)  # fmt: skip
def test_the_loop_is_the_definition(
    requests: int, key_heads: int, heads: int, key_width: int, value_width: int, threads: int
) -> None:
    given = numbers(requests, key_heads, heads, key_width, value_width, slots=9)
    # Each of the states changes in its slot, but for the first, which comes to another.
    read = torch.randperm(9, generator=torch.Generator().manual_seed(1))[: requests + 1]
    read, write = read[:requests], torch.cat([read[-1:], read[1:requests]])
    q, k, v, decay, beta, slots = given
    states, mine = slots.clone(), slots.clone()
    wanted = delta_rule(q, k, v, decay, beta, states, read, write)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        out = DeltaRuleCpu()(q, k, v, decay, beta, mine, read, write)
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(out, wanted)
    torch.testing.assert_close(mine, states)
