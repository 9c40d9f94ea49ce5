"""Decoder layers as a device graph of their own, for steps whose other parts vary.

Legend: T tokens, K model width, D head width.
"""

from collections.abc import Callable, Hashable
from typing import TypeAlias

import torch

from loramux_server.kernels.attention import AttentionBatch
from loramux_server.kernels.decoder import Decoder
from loramux_server.lora.segments import Segments

Repeat: TypeAlias = Callable[[Hashable, Callable[[], torch.Tensor]], torch.Tensor]
"""Takes a key and a function: runs the function, or replays what was recorded under that key."""
_Kept: TypeAlias = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
"""Static buffers: hidden states, cosines, sines; and output hidden states."""


class RepeatedDecoder:
    """A decoder with static input and output buffers, so that it can be recorded and replayed.

    The output buffer is shared because each recording would otherwise keep one of its own. The next
    step with the same number of tokens overwrites it.
    """

    def __init__(self, decoder: Decoder, repeat: Repeat) -> None:
        self._decoder = decoder
        self._repeat = repeat
        self._kept: dict[int, _Kept] = {}
        """Number of tokens -> buffers."""

    def __call__(
        self,
        key: Hashable,
        hidden_TK: torch.Tensor,
        cos_TD: torch.Tensor,
        sin_TD: torch.Tensor,
        batch: AttentionBatch,
        segments: Segments | None,
    ) -> torch.Tensor:
        """Return the decoder's output for `hidden_TK`; `key` identifies equal steps."""
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
        # Not into the inputs: a step that is being recorded runs twice.
        return self._repeat(
            key, lambda: out_TK.copy_(self._decoder(hidden, cos, sin, batch, segments))
        )
