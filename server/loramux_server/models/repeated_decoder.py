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
_Kept: TypeAlias = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
"""Hidden states, cosines and sines that come in, and hidden states that come out."""


class RepeatedDecoder:
    """A decoder whose inputs come to memory that stays, so that what it did can be repeated.

    Its outputs do, too: each record would keep memory of its own for them. They are overwritten by
    the next step with as many tokens.
    """

    def __init__(self, decoder: Decoder, repeat: Repeat) -> None:
        self._decoder = decoder
        self._repeat = repeat
        self._kept: dict[int, _Kept] = {}
        """Number of tokens -> where their inputs come, and their outputs."""

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
            self._kept[num_tokens] = hidden, cos, sin, torch.empty_like(hidden)
        *inputs, out_TK = self._kept[num_tokens]
        for x, place in zip(given, inputs, strict=True):
            place.copy_(x)
        hidden, cos, sin = inputs
        # Not where inputs are: a step that is recorded runs twice.
        return self._repeat(
            key, lambda: out_TK.copy_(self._decoder(hidden, cos, sin, batch, segments))
        )
