"""Recurrent states that are updated in their slots by single tokens.

transformers takes a request's state, creates several temporaries, and returns a new state. The
function that layers call for this is found by name, compared with our operation on random numbers,
and replaced if the results agree. Ours updates the slots without copies.
"""

import inspect
import types
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Self

import torch
from torch import nn

from loramux_server.models.rebound import calls, rebound
from loramux_server.models.step import Step

_TOLERANCE = 1e-5
Slots = tuple[torch.Tensor, torch.Tensor]
"""The slots of some requests: to read, and to write."""


class InPlaceUpdate(ABC):
    """Takes the place of the function that updates states by one token per request."""

    names: ClassVar[tuple[str, ...]]
    """Names of that function in modelling code."""

    def __init__(self, original: Callable[..., Any], step: Step) -> None:
        self._original = original
        self._step = step
        self._states: torch.Tensor | None = None
        self._slots: Slots = (torch.empty(0), torch.empty(0))

    @classmethod
    def install(cls, layer: nn.Module, shape: tuple[int, ...], step: Step) -> Self | None:
        """Let `layer` call our operation if it calls an equivalent one; else return None.

        Args:
            layer: A recurrent layer.
            shape: Shape of its state.
            step: The step that runs.
        """
        forward = inspect.unwrap(type(layer).forward)
        name = next((name for name in cls.names if calls(forward, name)), None)
        if name is None or len(shape) != 3:
            return None
        update = cls(forward.__globals__[name], step)
        try:
            is_same = update._is_same(*shape)
        except (RuntimeError, TypeError, ValueError, IndexError, AttributeError):
            return None
        if not is_same:
            return None
        layer.forward = types.MethodType(rebound(forward, name, update), layer)
        return update

    def begin(self, states: torch.Tensor, read_T: torch.Tensor, write_T: torch.Tensor) -> None:
        """Set the slots that the next call updates, if that is given all `states`."""
        self._states, self._slots = states, (read_T, write_T)

    def _take_slots(self, states: torch.Tensor | None) -> Slots | None:
        """Return the slots set for a call; None if it is given other states."""
        if states is None or states is not self._states:
            return None
        self._states = None
        return self._slots

    @abstractmethod
    def _is_same(self, heads: int, rows: int, columns: int) -> bool:
        """Return whether it computes the same as the layer's own function, for this state shape."""


def is_close(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Return whether two results are equal up to rounding."""
    return a.shape == b.shape and bool((a - b).abs().max() <= _TOLERANCE * (1 + b.abs().max()))
