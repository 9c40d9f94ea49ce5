"""Layers that a device repeats by themselves, where a step changes what is before and behind them.

Legend: T tokens, K model width, D head width.
"""

from collections.abc import Callable, Hashable
from typing import TypeAlias

import torch

from loramux_server.kernels.attention import AttentionBatch
from loramux_server.kernels.decoder import Decoder
from loramux_server.lora.segments import Segments

Repeat: TypeAlias = Callable[[Hashable, Callable[[], torch.Tensor]], torch.Tensor]
"""Takes the key of a step and what runs it; runs that, or what an equal step recorded."""
_Inputs: TypeAlias = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class RepeatedDecoder:
    """A decoder whose inputs come to memory that stays, so that what it did can be repeated."""

    def __init__(self, decoder: Decoder, repeat: Repeat) -> None:
        self._decoder = decoder
        self._repeat = repeat
        self._kept: dict[int, _Inputs] = {}
        """Number of tokens -> where their inputs come."""

    def __call__(
        self,
        key: Hashable,
        hidden_TK: torch.Tensor,
        cos_TD: torch.Tensor,
        sin_TD: torch.Tensor,
        batch: AttentionBatch,
        segments: Segments | None,
    ) -> torch.Tensor:
        """Return what the decoder makes of `hidden_TK`, in a step whose layers have this key."""
        given = hidden_TK, cos_TD, sin_TD
        num_tokens = len(hidden_TK)
        if num_tokens not in self._kept:
            hidden, cos, sin = (
                torch.empty_like(x, memory_format=torch.contiguous_format) for x in given
            )
            self._kept[num_tokens] = hidden, cos, sin
        kept = self._kept[num_tokens]
        for x, place in zip(given, kept, strict=True):
            place.copy_(x)
        return self._repeat(key, lambda: self._decoder(*kept, batch, segments))
