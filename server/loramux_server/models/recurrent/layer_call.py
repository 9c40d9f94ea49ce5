"""How a recurrent layer is called, with one part of a batch after another.

Legend: T tokens of the batch.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from loramux_server.models.recurrent.parts import Part
from loramux_server.models.recurrent.states import LayerStates

_CACHES = ("cache_params", "past_key_values")
"""Possible names of a layer's cache argument."""
Args = tuple[Any, ...]
Kwargs = dict[str, Any]


@dataclass(frozen=True, slots=True)
class LayerCall:
    """How a layer that takes a cache is called."""

    layer: nn.Module
    cache: str
    """Name of the cache argument; empty if it takes none."""
    place: int
    """Its position."""

    @staticmethod
    def of(layer: nn.Module) -> "LayerCall":
        """Return how `layer` is called."""
        for place, name in enumerate(inspect.signature(layer.forward).parameters):
            if name in _CACHES:
                return LayerCall(layer, name, place)
        return LayerCall(layer, "", 0)

    def with_cache(self, args: Args, kwargs: Kwargs, cache: object) -> tuple[Args, Kwargs]:
        """Return the arguments with `cache` in place."""
        if self.place < len(args):
            return (*args[: self.place], cache, *args[self.place + 1 :]), kwargs
        return args, {**kwargs, self.cache: cache}

    def run(self, part: Part, states: LayerStates, args: Args, kwargs: Kwargs) -> Any:  # noqa: ANN401
        """Return the layer's output for a part of the batch, as rows of tokens."""
        given = part.begin(states)
        args, kwargs = mapped((args, kwargs), part.gather)
        args, kwargs = self.with_cache(args, kwargs, given.as_cache(states.number))
        made = self.layer(*args, **kwargs)
        part.end(states, given)
        return mapped(made, part.row)


def mapped(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:  # noqa: ANN401
    """Return `value` with `change` applied to each tensor in it."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, tuple | list):
        return type(value)(mapped(each, change) for each in value)
    if isinstance(value, dict):
        return {name: mapped(each, change) for name, each in value.items()}
    return value


def joined(made: Sequence[Any], parts: Sequence[Part]) -> Any:  # noqa: ANN401
    """Return the outputs of parts, put together to that of the batch, [1, T, ...]."""
    first = made[0]
    if isinstance(first, tuple | list):
        return type(first)(joined(each, parts) for each in zip(*made, strict=True))
    if not isinstance(first, torch.Tensor):
        return first
    if len(parts) == 1:
        return first[None]
    whole = first.new_empty(1, sum(map(len, made)), *first.shape[1:])
    for piece, part in zip(made, parts, strict=True):
        whole[0, part.rows] = piece
    return whole
