"""Layers that are repeated by themselves: what a record of them reads and leaves."""

from collections.abc import Callable, Hashable

import numpy as np
import torch

from loramux_server.kernels.attention import AttentionBatch
from loramux_server.lora.segments import Segments
from loramux_server.models.repeated_decoder import RepeatedDecoder

BATCH = AttentionBatch(
    np.zeros(1, np.int32), np.zeros(0, np.int32), np.zeros((0, 0), np.int32), 4, torch.zeros(0)
)


def twice(key: Hashable, step: Callable[[], torch.Tensor]) -> torch.Tensor:
    """Run `step` as a device does that records it: once before, and once again."""
    del key
    step()
    return step()


def test_all_records_leave_what_comes_out_in_the_same_memory() -> None:
    def decoder(
        hidden_TK: torch.Tensor,
        cos_TD: torch.Tensor,
        sin_TD: torch.Tensor,
        batch: AttentionBatch,
        segments: Segments | None,
    ) -> torch.Tensor:
        del batch, segments
        return 2 * hidden_TK + cos_TD + sin_TD

    repeated = RepeatedDecoder(decoder, twice)
    found = []
    for key in ("few adapters", "many adapters"):
        hidden, cos, sin = (torch.randn(3, 8) for _ in range(3))
        out = repeated(key, hidden, cos, sin, BATCH, None)
        torch.testing.assert_close(out, 2 * hidden + cos + sin)
        found.append(out.data_ptr())
    assert found[0] == found[1]
