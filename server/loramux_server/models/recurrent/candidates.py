"""Layers that may be recurrent, and whether they are: their use of a cache shows it."""

import itertools
from collections.abc import Iterator, Sequence
from itertools import chain

import torch
from torch import nn

from loramux_server.kernels.states import BEGINNING
from loramux_server.models.recurrent.layer_call import Args, Kwargs, LayerCall, joined, mapped
from loramux_server.models.recurrent.parts import Run
from loramux_server.models.recurrent.states import LayerStateCache, LayerStates, State, StateShape

_ROUNDING = 64
"""Tolerance between two runs of a layer, in units of eps of the largest output."""


class Candidate:
    """A layer that takes a cache, and what it did with it when the model ran."""

    def __init__(self, call: LayerCall, number: int) -> None:
        self.layer = call.layer
        self.given = LayerStateCache({})
        """The states that it was given, and those that it made."""
        self._number = number
        self._call = call
        self._arguments: tuple[Args, Kwargs] = ((), {})
        self._shape = torch.Size()
        """Batch size and number of tokens of that run."""

    def capture(self, layer: nn.Module, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs]:
        """Give the layer a cache of its own and record its arguments; a forward pre-hook."""
        del layer
        self._arguments = self._call.with_cache(args, kwargs, None)
        self._shape = next(chain(args, kwargs.values())).shape[:2]
        return self._call.with_cache(args, kwargs, self.given.as_cache(self._number))

    def states(self) -> LayerStates:
        """Return the states that it keeps per request, without slots.

        Raises:
            NotImplementedError: Its arguments include tensors that are not one row per token.
        """

        def check(x: torch.Tensor) -> torch.Tensor:
            if x.shape[:2] != self._shape:
                raise NotImplementedError(
                    f"recurrent layer {self._number} takes tensors without one row per token"
                )
            return x

        mapped(self._arguments, check)
        shapes = {
            state: StateShape(tuple(one.shape[1:]), one.dtype)
            for state, one in self.given.states.items()
        }
        return LayerStates(self._number, shapes)

    def supports_continuation(self, states: LayerStates) -> bool:
        """Return whether it computes the same for random tokens in two pieces as in one."""
        slot, device = BEGINNING + 1, next(self.layer.parameters()).device
        num_tokens = self._shape[1]
        generator = torch.Generator().manual_seed(0)

        def random(x: torch.Tensor) -> torch.Tensor:
            return torch.randn(x.shape, generator=generator).to(x) if x.is_floating_point() else x

        args, kwargs = mapped(self._arguments, random)

        def made(*borders: int, other: State | None = None) -> torch.Tensor:
            """Return the output in pieces; state `other` is overwritten after each piece."""
            states.allocate(slot + 1, device)
            parts = [Run(slice(*piece), slot, slot) for piece in itertools.pairwise(borders)]
            found = []
            for part in parts:
                found.append(self._call.run(part, states, args, kwargs))
                if other:
                    states.fill(other, slot, 1.0)
            first = joined(found, parts)
            y: torch.Tensor = first[0] if isinstance(first, tuple | list) else first
            return y

        cut = num_tokens // 2
        with torch.inference_mode():
            whole = made(0, num_tokens)
            halves = made(0, cut, num_tokens)
            # In low precision, a state's contribution may be within the tolerance. So a wrong state
            # must also change the result.
            others = [made(0, cut, num_tokens, other=state) for state in self.given.states]
        error = (halves - whole).abs().max()
        states.release()
        is_same = bool(error <= _ROUNDING * torch.finfo(whole.dtype).eps * whole.abs().max())
        return is_same and not any(torch.equal(halves, other) for other in others)


def candidates(
    module: nn.Module, attending: Sequence[nn.Module]
) -> Iterator[tuple[str, Candidate]]:
    """Yield the layers of `module` that take a cache and contain no attention."""
    attends = set(map(id, attending))
    for name, layer in module.named_modules():
        call, number = LayerCall.of(layer), getattr(layer, "layer_idx", None)
        is_around_attention = any(id(part) in attends for part in layer.modules())
        if call.cache and isinstance(number, int) and not is_around_attention:
            yield name, Candidate(call, number)
