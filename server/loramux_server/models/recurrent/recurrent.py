"""Recurrent layers, such as linear attention, state-space models and short convolutions.

They are found by running the model: a layer that puts a state into transformers' cache is one. The
states of requests are kept in slots.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import nn

from loramux_server.kernels.states import StateBatch
from loramux_server.models.packed_linear import PackedPart
from loramux_server.models.part_scheduler import PartScheduler
from loramux_server.models.recurrent.candidates import candidates
from loramux_server.models.recurrent.layer_call import LayerCall, joined
from loramux_server.models.recurrent.parts import Part, in_steps, parts_of
from loramux_server.models.recurrent.states import LayerStates
from loramux_server.models.step import Step
from loramux_server.models.synced_layers import SyncedLinear


@dataclass(slots=True)
class Recurrent:
    """The recurrent layers of a model, by name."""

    states: dict[str, LayerStates] = field(default_factory=dict)
    supports_continuation: bool = True
    """Whether all of them can continue a text with several tokens at once. If not, each such token
    is a part of its own, and no intermediate states are kept."""

    @property
    def slot_bytes(self) -> int:
        """Bytes of the states of a request."""
        return sum(each.slot_bytes for each in self.states.values())

    @property
    def numbers(self) -> set[int]:
        """Numbers of the layers."""
        return {each.number for each in self.states.values()}

    def has(self, name: str) -> bool:
        """Return whether the module called `name` is inside one of the layers."""
        return any(name.startswith(f"{each}.") for each in self.states)

    @staticmethod
    def found(
        module: nn.Module, attending: Sequence[nn.Module], run: Callable[[], object]
    ) -> "Recurrent":
        """Return the recurrent layers of `module`.

        Args:
            module: The model.
            attending: Its attention modules; layers that contain them use a cache for attention.
            run: Runs the model on one text.

        Raises:
            NotImplementedError: A layer is recurrent in an unsupported way.
        """
        seen = dict(candidates(module, attending))
        if not seen:
            return Recurrent()
        with ExitStack() as hooks:
            for each in seen.values():
                hook = each.layer.register_forward_pre_hook(each.capture, with_kwargs=True)
                hooks.callback(hook.remove)
            run()
        states: dict[str, LayerStates] = {}
        tried: dict[type[nn.Module], bool] = {}
        for name, each in seen.items():
            if each.given.states:
                states[name] = each.states()
                kind = type(each.layer)
                if kind not in tried:
                    tried[kind] = each.supports_continuation(states[name])
        return Recurrent(states, supports_continuation=all(tried.values()))

    def serve(self, module: nn.Module, step: Step) -> None:
        """Let the layers of `module`, whose linear layers are packed already, take batches."""
        scheduler, division = (
            PartScheduler(step),
            _Division(step, supports_continuation=self.supports_continuation),
        )
        for name, states in self.states.items():
            layer = module.get_submodule(name)
            for inner, part in list(layer.named_modules()):
                if isinstance(part, PackedPart):
                    layer.set_submodule(inner, SyncedLinear(part, scheduler))
            states.update_in_place(layer, step)
            module.set_submodule(name, RecurrentLayer(layer, states, scheduler, division))

    def allocate(self, num_slots: int, device: torch.device) -> None:
        """Allocate `num_slots` slots for each layer."""
        for each in self.states.values():
            each.allocate(num_slots, device)

    def release(self) -> None:
        """Free the slots; `allocate` makes new ones."""
        for each in self.states.values():
            each.release()


class RecurrentLayer(nn.Module):
    """Takes the place of a recurrent layer that expects texts of equal length side by side.

    Requests with one token run through it together, each other request alone.
    """

    def __init__(
        self,
        original: nn.Module,
        states: LayerStates,
        scheduler: PartScheduler,
        division: "_Division",
    ) -> None:
        super().__init__()
        self.original = original
        """The model's own layer."""
        self._call = LayerCall.of(original)
        self._states = states
        self._scheduler = scheduler
        self._division = division

    def forward(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """Return the layer's output for a row of tokens, in which requests are concatenated."""
        parts = self._division.parts()
        calls = [partial(self._call.run, part, self._states, args, kwargs) for part in parts]
        return joined(self._scheduler.run(calls, [(part.rows,) for part in parts]), parts)


class _Division:
    """The parts of the running step, computed once per step."""

    def __init__(self, step: Step, *, supports_continuation: bool) -> None:
        self._step = step
        self._supports_continuation = supports_continuation
        self._states: StateBatch | None = None
        self._parts: list[Part] = []

    def parts(self) -> list[Part]:
        """Return them."""
        batch, states = self._step.attention, self._step.states
        assert batch is not None
        assert states is not None
        if states is not self._states:
            parts = parts_of(batch.query_start_B, states, self._step.device)
            self._states = states
            self._parts = (
                parts
                if self._supports_continuation
                else list(chain.from_iterable(map(in_steps, parts)))
            )
        return self._parts
