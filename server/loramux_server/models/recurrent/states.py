"""States of recurrent layers, in slots.

Source of the interface: `transformers.cache_utils.LinearAttentionLayer`, through which such layers
read and write their convolution and recurrent states.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import Cache
from transformers.cache_utils import LinearAttentionLayer

from loramux_server.kernels.states import BEGINNING
from loramux_server.models.recurrent.delta_rule import DeltaRule
from loramux_server.models.recurrent.in_place import InPlaceUpdate
from loramux_server.models.recurrent.state_space import StateSpace
from loramux_server.models.step import Step

CONV, RECURRENT = "conv", "recurrent"
State = tuple[str, int]
"""Kind of state, and the layer's index for it within that kind."""
_FIRST = (RECURRENT, 0)
_MOST_STATES = 16
"""Most states of one kind in a layer; known layers have at most three."""


class LayerStateCache(LinearAttentionLayer):  # type: ignore[misc]
    """A layer's states of some requests, in the form that it takes."""

    def __init__(self, states: Mapping[State, torch.Tensor]) -> None:
        """Wrap `states`, which the layer updates in place; if empty, the layer creates them."""
        count = 1 + max((number for _, number in states), default=_MOST_STATES - 1)
        super().__init__(number_of_states=count)
        for (kind, number), state in states.items():
            self._of(kind)[number] = state
            if kind == CONV:
                self.is_conv_states_initialized[number] = True
                self.conv_kernel_size[number] = state.shape[-1]
            else:
                self.is_recurrent_states_initialized[number] = True
            self.dtype, self.device = state.dtype, state.device
        if states:
            # The initial states are zero, which equals no previous state.
            self.has_previous_state = dict.fromkeys(range(count), True)
        self.copies: Mapping[State, torch.Tensor] = {}
        """Where updated states are copied to."""

    @property
    def states(self) -> dict[State, torch.Tensor]:
        """The current states."""
        return {
            (kind, number): state
            for kind in (CONV, RECURRENT)
            for number, state in self._of(kind).items()
            if state is not None
        }

    def as_cache(self, number: int) -> Cache:
        """Return a cache in which layer number `number` finds these states."""
        return _OneLayer(layers=[self] * (number + 1))

    def update_conv_state(
        self,
        conv_states: torch.Tensor,
        state_idx: int = 0,
        **kwargs: Any,  # noqa: ANN401
    ) -> torch.Tensor:
        """Update a convolution state, and return it with the previous inputs."""
        found: torch.Tensor = super().update_conv_state(conv_states, state_idx, **kwargs)
        self._copy((CONV, state_idx))
        return found

    def update_recurrent_state(
        self,
        recurrent_states: torch.Tensor,
        state_idx: int = 0,
        **kwargs: Any,  # noqa: ANN401
    ) -> torch.Tensor:
        """Update a recurrent state, and return it."""
        found: torch.Tensor = super().update_recurrent_state(recurrent_states, state_idx, **kwargs)
        self._copy((RECURRENT, state_idx))
        return found

    def _of(self, kind: str) -> dict[int, torch.Tensor | None]:
        found: dict[int, torch.Tensor | None]
        found = self.conv_states if kind == CONV else self.recurrent_states
        return found

    def _copy(self, state: State) -> None:
        if state in self.copies:
            self.copies[state].copy_(self.states[state])


class _OneLayer(Cache):  # type: ignore[misc]
    """A cache for one recurrent layer, and for attention that has a cache of its own."""

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        raise AttributeError(f"a layer uses {name} of its cache, which has no such attribute")

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        *args: Any,  # noqa: ANN401
        **kwargs: Any,  # noqa: ANN401
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return keys and values unchanged."""
        del args, kwargs
        return key_states, value_states


@dataclass(frozen=True, slots=True)
class StateShape:
    """Shape and dtype of one state of a layer for one request."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        """Its size."""
        return self.dtype.itemsize * torch.Size(self.shape).numel()


class LayerStates:
    """The states of one layer, in slots.

    Legend: S slots, B requests.
    """

    def __init__(self, number: int, shapes: Mapping[State, StateShape]) -> None:
        """Create the states of layer `number`, without slots."""
        self.number = number
        self._shapes = shapes
        self._slots: dict[State, torch.Tensor] = {}
        """[S, ...] each."""
        self._in_place: InPlaceUpdate | None = None
        """Updates the first recurrent state in its slots; None if not supported."""

    @property
    def slot_bytes(self) -> int:
        """Size of a slot."""
        return sum(each.num_bytes for each in self._shapes.values())

    def allocate(self, num_slots: int, device: torch.device) -> None:
        """Allocate zeroed slots. Host memory is committed on first touch."""
        self._slots = {
            state: torch.zeros(num_slots, *each.shape, dtype=each.dtype, device=device)
            for state, each in self._shapes.items()
        }

    def release(self) -> None:
        """Free the slots."""
        self._slots = {}

    def fill(self, state: State, slot: int, value: float) -> None:
        """Set each element of a state in a slot to `value`."""
        self._slots[state][slot] = value

    def copy(self, source: int, target: int) -> None:
        """Copy one slot to another."""
        for slots in self._slots.values():
            slots[target] = slots[source]

    def update_in_place(self, layer: nn.Module, step: Step) -> None:
        """Let `layer` update its state in its slots for single tokens, if that is supported."""
        shape = self._shapes.get(_FIRST)
        if shape and shape.dtype is torch.float32:
            tried = (kind.install(layer, shape.shape, step) for kind in (DeltaRule, StateSpace))
            self._in_place = next(filter(None, tried), None)

    def gathered(self, read_B: torch.Tensor, write_B: torch.Tensor) -> LayerStateCache:
        """Return the states of requests: copies, or all slots of a state that is updated in place.

        Args:
            read_B: Slots to read.
            write_B: Slots that `scatter` will write.
        """
        given = {}
        for state, slots in self._slots.items():
            if self._in_place and state == _FIRST:
                given[state] = slots
                self._in_place.begin(slots, read_B, write_B)
            else:
                given[state] = slots.index_select(0, read_B)
        return LayerStateCache(given)

    def scatter(self, given: LayerStateCache, write_B: torch.Tensor) -> None:
        """Write the states of requests to their slots."""
        for state, made in given.states.items():
            if made is not self._slots[state]:
                self._slots[state].index_copy_(0, write_B, made)

    def at(self, slot: int, kept: int = BEGINNING) -> LayerStateCache:
        """Return the state of one request, which is updated in its slot.

        Args:
            slot: The request's slot.
            kept: Slot to which the updated state is copied; `BEGINNING` for none.
        """
        given = LayerStateCache(self._slot(slot))
        if kept != BEGINNING:
            given.copies = self._slot(kept)
        return given

    def _slot(self, slot: int) -> dict[State, torch.Tensor]:
        return {state: slots[slot : slot + 1] for state, slots in self._slots.items()}
