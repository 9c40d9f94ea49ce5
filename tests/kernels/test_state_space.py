"""State spaces of one token: the compiled loop is what its definition says."""

import pytest
import torch

from loramux_server.kernels.cpu.state_space import StateSpaceCpu
from loramux_server.kernels.state_space import state_space


def numbers(
    requests: int, groups: int, heads: int, head_width: int, state_width: int, slots: int
) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)

    def random(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator)

    x, decay = random(requests, heads, head_width), random(requests, heads).sigmoid()
    b, c = random(requests, groups, state_width), random(requests, groups, state_width)
    return [x, decay, b, c, random(slots, heads, head_width, state_width)]


def test_the_definition_is_the_recurrence() -> None:
    x, decay, b, c, state = numbers(1, 1, 2, 3, 4, 2)
    wanted = state.clone()
    for head in range(2):
        wanted[1, head] = decay[0, head] * state[0, head] + torch.outer(x[0, head], b[0, 0])
    out = state_space(x, decay, b, c, state, torch.tensor([0]), torch.tensor([1]))
    torch.testing.assert_close(state, wanted)
    torch.testing.assert_close(out[0], wanted[1] @ c[0, 0])


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("requests", "groups", "heads", "head_width", "state_width"),
    [(1, 1, 1, 64, 128), (5, 2, 4, 16, 16), (3, 1, 16, 7, 48), (2, 1, 2, 8, 8)],
)
def test_the_loop_is_the_definition(
    requests: int, groups: int, heads: int, head_width: int, state_width: int, threads: int
) -> None:
    x, decay, b, c, slots = numbers(requests, groups, heads, head_width, state_width, slots=9)
    # Each of the states changes in its slot, but for the first, which comes to another.
    read = torch.randperm(9, generator=torch.Generator().manual_seed(1))[: requests + 1]
    read, write = read[:requests], torch.cat([read[-1:], read[1:requests]])
    states, mine = slots.clone(), slots.clone()
    wanted = state_space(x, decay, b, c, states, read, write)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        out = StateSpaceCpu()(x, decay, b, c, mine, read, write)
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(out, wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(mine, states)
