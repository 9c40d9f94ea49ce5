"""Layers that are recurrent, such as linear attention, state spaces and short convolutions.

They are found by running the model: whoever brings a state to transformers' cache is one. What they
know of a request lies in slots.
"""

import inspect
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import nn

from loramux_server.kernels.states import BEGINNING, StateBatch
from loramux_server.models.packed_linear import PackedPart
from loramux_server.models.parts import Part, Run, in_steps, parts_of
from loramux_server.models.states import GivenStates, LayerStates, State, StateShape
from loramux_server.models.step import Step
from loramux_server.models.turns import Turns, WaitingPart

_CACHES = ("cache_params", "past_key_values")
"""What a layer may call the argument that is its cache."""


_Args = tuple[Any, ...]
_Kwargs = dict[str, Any]
_ROUNDING = 64
"""Units in the last place by which a layer may differ from itself."""


@dataclass(slots=True)
class Recurrent:
    """The recurrent layers of a model, by name."""

    states: dict[str, LayerStates] = field(default_factory=dict)
    goes_on: bool = True
    """Whether all of them take several tokens at once of a text that has begun before; else each
    is a part of its own, and nothing is kept on the way."""

    @property
    def slot_bytes(self) -> int:
        """What the states of a request take."""
        return sum(each.slot_bytes for each in self.states.values())

    @property
    def numbers(self) -> set[int]:
        """Numbers of the layers."""
        return {each.number for each in self.states.values()}

    def has(self, name: str) -> bool:
        """Return whether the module called `name` is inside of one of the layers."""
        return any(name.startswith(f"{each}.") for each in self.states)

    @staticmethod
    def found(
        module: nn.Module, attending: Sequence[nn.Module], run: Callable[[], object]
    ) -> "Recurrent":
        """Return the layers of `module`.

        Args:
            module: The model.
            attending: Its modules that attend; for what is around them a cache is something else.
            run: Runs it on one text.

        Raises:
            NotImplementedError: A layer is recurrent in a way that is not served.
        """
        seen = dict(_that_may_be(module, attending))
        if not seen:
            return Recurrent()
        with ExitStack() as hooks:
            for each in seen.values():
                hook = each.layer.register_forward_pre_hook(each.tell, with_kwargs=True)
                hooks.callback(hook.remove)
            run()
        states: dict[str, LayerStates] = {}
        tried: dict[type[nn.Module], bool] = {}
        for name, each in seen.items():
            if each.given.states:
                states[name] = each.states()
                kind = type(each.layer)
                if kind not in tried:
                    tried[kind] = each.goes_on(states[name])
        return Recurrent(states, goes_on=all(tried.values()))

    def serve(self, module: nn.Module, step: Step) -> None:
        """Let the layers of `module`, whose linear layers are packed, take batches."""
        turns, division = Turns(), _Division(step, goes_on=self.goes_on)
        for name, states in self.states.items():
            layer = module.get_submodule(name)
            for inner, part in list(layer.named_modules()):
                if isinstance(part, PackedPart):
                    layer.set_submodule(inner, WaitingPart(part, turns))
            states.change_in_slots(layer, step)
            module.set_submodule(name, RecurrentLayer(layer, states, turns, division))

    def allocate(self, num_slots: int, device: torch.device) -> None:
        """Make so many slots for each layer."""
        for each in self.states.values():
            each.allocate(num_slots, device)

    def release(self) -> None:
        """Give the slots' memory back; `allocate` makes others."""
        for each in self.states.values():
            each.release()


class RecurrentLayer(nn.Module):
    """Stands where a recurrent layer stood, which takes texts of one length side by side.

    Requests with one token go through it together, each of the others alone.
    """

    def __init__(
        self, own: nn.Module, states: LayerStates, turns: Turns, division: "_Division"
    ) -> None:
        super().__init__()
        self.own = own
        """The model's own."""
        self._call = _Call.of(own)
        self._states = states
        self._turns = turns
        self._division = division

    def forward(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """Return what the layer makes of a row of tokens, those of one request after another."""
        parts = self._division.parts()
        calls = [partial(self._call.made, part, self._states, args, kwargs) for part in parts]
        return _joined(self._turns.run(calls, [part.rows for part in parts]), parts)


@dataclass(frozen=True, slots=True)
class _Call:
    """How a layer is called that takes a cache."""

    layer: nn.Module
    cache: str
    """Name of that argument."""
    place: int
    """Its place."""

    @staticmethod
    def of(layer: nn.Module) -> "_Call":
        """Return how `layer` is called; there is no cache among what it takes, if it takes none."""
        for place, name in enumerate(inspect.signature(layer.forward).parameters):
            if name in _CACHES:
                return _Call(layer, name, place)
        return _Call(layer, "", 0)

    def with_cache(self, args: _Args, kwargs: _Kwargs, cache: object) -> tuple[_Args, _Kwargs]:
        """Return arguments with `cache` among them."""
        if self.place < len(args):
            return (*args[: self.place], cache, *args[self.place + 1 :]), kwargs
        return args, {**kwargs, self.cache: cache}

    def made(self, part: Part, states: LayerStates, args: _Args, kwargs: _Kwargs) -> Any:  # noqa: ANN401
        """Return what the layer makes of a part of the batch, as rows of tokens."""
        given = part.begin(states)
        args, kwargs = _mapped((args, kwargs), part.take)
        args, kwargs = self.with_cache(args, kwargs, given.as_cache(states.number))
        made = self.layer(*args, **kwargs)
        part.end(states, given)
        return _mapped(made, part.row)


def _that_may_be(
    module: nn.Module, attending: Sequence[nn.Module]
) -> Iterator[tuple[str, "_Seen"]]:
    """Yield the layers of `module` that take a cache and have nothing that attends inside."""
    attends = set(map(id, attending))
    for name, layer in module.named_modules():
        call, number = _Call.of(layer), getattr(layer, "layer_idx", None)
        is_around_attention = any(id(part) in attends for part in layer.modules())
        if call.cache and isinstance(number, int) and not is_around_attention:
            yield name, _Seen(call, number)


class _Seen:
    """A layer that takes a cache, and what it did with it when the model was run."""

    def __init__(self, call: _Call, number: int) -> None:
        self.layer = call.layer
        self.given = GivenStates({})
        """What it was given, and made there."""
        self._number = number
        self._call = call
        self._arguments: tuple[_Args, _Kwargs] = ((), {})
        self._shape = torch.Size()
        """Of the text that it was given: one of some tokens."""

    def tell(self, layer: nn.Module, args: _Args, kwargs: _Kwargs) -> tuple[_Args, _Kwargs]:
        """Give the layer a cache of its own; a hook."""
        del layer
        self._arguments = self._call.with_cache(args, kwargs, None)
        self._shape = next(chain(args, kwargs.values())).shape[:2]
        return self._call.with_cache(args, kwargs, self.given.as_cache(self._number))

    def states(self) -> LayerStates:
        """Return what it keeps of a request, without slots.

        Raises:
            NotImplementedError: What it makes of a token depends on more than tokens.
        """

        def check(x: torch.Tensor) -> torch.Tensor:
            if x.shape[:2] != self._shape:
                raise NotImplementedError(
                    f"recurrent layer {self._number} depends on more than tokens"
                )
            return x

        _mapped(self._arguments, check)
        shapes = {
            state: StateShape(tuple(one.shape[1:]), one.dtype)
            for state, one in self.given.states.items()
        }
        return LayerStates(self._number, shapes)

    def goes_on(self, states: LayerStates) -> bool:
        """Return whether it makes the same of random tokens in two pieces as of all of them."""
        slot, device = BEGINNING + 1, next(self.layer.parameters()).device
        num_tokens = self._shape[1]
        generator = torch.Generator().manual_seed(0)

        def random(x: torch.Tensor) -> torch.Tensor:
            return torch.randn(x.shape, generator=generator).to(x) if x.is_floating_point() else x

        args, kwargs = _mapped(self._arguments, random)

        def made(*borders: int, other: State | None = None) -> torch.Tensor:
            """Return what comes of it in pieces; between them, `other` is not what it was."""
            states.allocate(slot + 1, device)
            parts = [Run(slice(*piece), slot, slot) for piece in itertools.pairwise(borders)]
            found = []
            for part in parts:
                found.append(self._call.made(part, states, args, kwargs))
                if other:
                    states.fill(other, slot, 1.0)
            first = _joined(found, parts)
            y: torch.Tensor = first[0] if isinstance(first, tuple | list) else first
            return y

        cut = num_tokens // 2
        with torch.inference_mode():
            whole = made(0, num_tokens)
            halves = made(0, cut, num_tokens)
            # In few bits, what a state adds may be less than what rounding does; not what it is.
            others = [made(0, cut, num_tokens, other=state) for state in self.given.states]
        error = (halves - whole).abs().max()
        states.release()
        is_same = bool(error <= _ROUNDING * torch.finfo(whole.dtype).eps * whole.abs().max())
        return is_same and not any(torch.equal(halves, other) for other in others)


class _Division:
    """The parts of the step that runs, found out once."""

    def __init__(self, step: Step, *, goes_on: bool) -> None:
        self._step = step
        self._goes_on = goes_on
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
                parts if self._goes_on else list(chain.from_iterable(map(in_steps, parts)))
            )
        return self._parts


def _mapped(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:  # noqa: ANN401
    """Return `value` with each tensor in it changed."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, tuple | list):
        return type(value)(_mapped(each, change) for each in value)
    if isinstance(value, dict):
        return {name: _mapped(each, change) for name, each in value.items()}
    return value


def _joined(made: Sequence[Any], parts: Sequence[Part]) -> Any:  # noqa: ANN401
    """Return what was made of parts as what is made of the batch, [1, T, ...]."""
    first = made[0]
    if isinstance(first, tuple | list):
        return type(first)(_joined(each, parts) for each in zip(*made, strict=True))
    if not isinstance(first, torch.Tensor):
        return first
    if len(parts) == 1:
        return first[None]
    whole = first.new_empty(1, sum(map(len, made)), *first.shape[1:])
    for piece, part in zip(made, parts, strict=True):
        whole[0, part.rows] = piece
    return whole
