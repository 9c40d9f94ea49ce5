"""States that take in one token where they lie.

transformers takes a request's state, makes several others of it, and gives one back. What layers
call for that is found by its name, tried against our operation on random numbers, and replaced if
it gives the same; it then changes slots, of which nothing is copied.
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
"""Where the states of some requests are read, and where they are written."""


class InSlots(ABC):
    """Stands where a layer's forward calls what lets states take in one token of each request."""

    names: ClassVar[tuple[str, ...]]
    """What that is called."""

    def __init__(self, original: Callable[..., Any], step: Step) -> None:
        self._original = original
        self._step = step
        self._states: torch.Tensor | None = None
        self._slots: Slots = (torch.empty(0), torch.empty(0))

    @classmethod
    def put_into(cls, layer: nn.Module, shape: tuple[int, ...], step: Step) -> Self | None:
        """Let `layer` call it, if it calls such a thing; else return None.

        Args:
            layer: A recurrent one.
            shape: Of its state.
            step: The step that runs.
        """
        forward = inspect.unwrap(type(layer).forward)
        name = next((name for name in cls.names if calls(forward, name)), None)
        if name is None or len(shape) != 3:
            return None
        own = cls(forward.__globals__[name], step)
        try:
            is_same = own._is_same(*shape)
        except (RuntimeError, TypeError, ValueError, IndexError, AttributeError):
            return None
        if not is_same:
            return None
        layer.forward = types.MethodType(rebound(forward, name, own), layer)
        return own

    def begin(self, states: torch.Tensor, read_T: torch.Tensor, write_T: torch.Tensor) -> None:
        """Let the next call that is given all slots change those of some requests."""
        self._states, self._slots = states, (read_T, write_T)

    def _taken(self, states: torch.Tensor | None) -> Slots | None:
        """Return the slots that a call is about; None where it is given states of its own."""
        if states is None or states is not self._states:
            return None
        self._states = None
        return self._slots

    @abstractmethod
    def _is_same(self, heads: int, rows: int, columns: int) -> bool:
        """Return whether it computes what the layer's own does, with states of this shape."""


def is_close(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Return whether two results are the same but for rounding."""
    return a.shape == b.shape and bool((a - b).abs().max() <= _TOLERANCE * (1 + b.abs().max()))
