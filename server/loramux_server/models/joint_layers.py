"""Layers of a decoder behind an encoder, which take the next tokens of several requests at once.

What a decoder makes of one token takes many small operations. So where requests come to a layer
with one token each, it is called once for all of them, which lie in a row as the tokens of one text
do, and only attention, which sees what each has seen before, is computed for one after another. The
first layer is called for each: it may tell the others where tokens are.

Legend: B requests, K width of a hidden state, H heads, D width of a key.
"""

import itertools
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    DynamicCache,
    EncoderDecoderCache,
    PreTrainedModel,
)
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from loramux_server.models.attention import CacheShape
from loramux_server.models.packed_linear import PackedPart
from loramux_server.models.turns import Joint, Turns

_numbers = itertools.count()


@dataclass(frozen=True, slots=True)
class Call:
    """What a layer is called with for one request."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @property
    def hidden(self) -> torch.Tensor:
        """The hidden states, [1, tokens, K]."""
        hidden: torch.Tensor = self.args[0] if self.args else self.kwargs["hidden_states"]
        return hidden

    @property
    def values(self) -> tuple[Any, ...]:
        """All of it, in an order that is the same for all requests."""
        return tuple(_leaves((*self.args, *self.kwargs.values())))

    def goes_on(self, num_layers: int) -> bool:
        """Whether it is one token, of a request that has seen its source in so many layers."""
        cache = self.cache
        if cache is None or self.hidden.shape[:2] != (1, 1):
            return False
        num_known: int = sum(cache.is_updated.values())
        return num_known == num_layers

    @property
    def cache(self) -> EncoderDecoderCache | None:
        """What the request has seen before; None where there is no such thing."""
        found = (each for each in self.values if isinstance(each, EncoderDecoderCache))
        return next(found, None)


class _Rows(EncoderDecoderCache):  # type: ignore[misc]
    """Stands for what requests have seen before, for which attention asks each of them."""

    def __init__(self, shapes: Sequence[CacheShape], like: torch.Tensor) -> None:
        super().__init__(DynamicCache(), DynamicCache())
        self.self_attention_cache = self
        self.cross_attention_cache = SimpleNamespace(
            layers=[
                SimpleNamespace(
                    keys=like.new_empty(1, shape.num_heads, 1, shape.key_width),
                    values=like.new_empty(1, shape.num_heads, 1, shape.value_width),
                )
                for shape in shapes
            ]
        )
        self.is_updated = dict.fromkeys(range(len(shapes)), True)
        self.keys: torch.Tensor | None = None
        """Of the tokens in the row, [1, H, B, D]."""

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        *_: Any,  # noqa: ANN401
        **__: Any,  # noqa: ANN401
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what the tokens in the row bring."""
        self.keys = key_states
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return a number: who needs the right one asks in the first layer."""
        del layer_idx
        return 0


class JointAttention:
    """The model's own attention; where tokens of several requests are in a row, that of each."""

    def __init__(self, module: PreTrainedModel, shapes: Sequence[CacheShape]) -> None:
        """Take the place of the attention of `module`, each layer of whose decoder keeps `shapes`.

        Raises:
            KeyError: It is not known what that is.
        """
        self._module = module
        self._kind = str(module.config._attn_implementation)
        self._shapes = shapes
        self.num_layers = len(shapes)
        """Of the decoder."""
        self._rows: _Rows | None = None
        self._theirs: dict[int, list[Any]] = {}
        """What each request has, by the identity of what stands for it."""
        self._caches: list[EncoderDecoderCache] = []
        name = f"loramux-joint-{next(_numbers)}"
        AttentionInterface.register(name, self)
        AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[self._kind])
        module.set_attn_implementation(name)

    def remove(self) -> None:
        """Give the model its own attention back."""
        self._module.set_attn_implementation(self._kind)

    def made(self, layer: nn.Module, calls: Sequence[Call]) -> list[Any]:
        """Return what `layer` makes of the token of each of `calls`.

        Raises:
            NotImplementedError: It makes more than hidden states of it, or is given other kinds of
                things for one than for another.
        """
        hidden_1BK = torch.cat([call.hidden for call in calls], 1)
        rows = _Rows(self._shapes, hidden_1BK)
        first, values = calls[0], [call.values for call in calls]
        if len({tuple(map(type, each)) for each in values}) > 1:
            raise NotImplementedError("a layer that is given other things for other requests")
        stand_ins: dict[int, torch.Tensor] = {}
        self._theirs = {}
        for place, value in enumerate(values[0]):
            if isinstance(value, torch.Tensor) and id(value) not in stand_ins:
                stand_ins[id(value)] = stand_in = _stand_in(value)
                self._theirs[id(stand_in)] = [each[place] for each in values]
        self._caches = [cache for call in calls if (cache := call.cache)]

        def joint(value: Any) -> Any:  # noqa: ANN401
            if value is first.hidden:
                return hidden_1BK
            if isinstance(value, tuple | list):
                return type(value)(map(joint, value))
            if isinstance(value, EncoderDecoderCache):
                return rows
            return stand_ins.get(id(value), value)

        self._rows = rows
        try:
            made = layer(
                *map(joint, first.args),
                **{name: joint(value) for name, value in first.kwargs.items()},
            )
        finally:
            self._rows = None
        hidden, *others = made if isinstance(made, tuple) else (made,)
        found = []
        for number in range(len(calls)):
            of_one = hidden[:, number : number + 1]
            if isinstance(made, tuple):
                of_one = (of_one, *(self._of(other, number) for other in others))
            found.append(of_one)
        self._theirs, self._caches = {}, []
        return found

    def _of(self, value: Any, number: int) -> Any:  # noqa: ANN401
        """Return what a request has where `value` stands for it."""
        if not isinstance(value, torch.Tensor):
            return value
        if id(value) not in self._theirs:
            raise NotImplementedError("a layer that makes more than hidden states of a token")
        return self._theirs[id(value)][number]

    def __call__(
        self,
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        **named: Any,  # noqa: ANN401
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend for one layer, as `module`'s own attention does.

        Args:
            module: What attends, which knows the number of its layer.
            query: [1, H, tokens, D].
            key: Likewise; of the tokens of a source there are none where requests are in a row.
            value: Likewise.
            attention_mask: What stands for that of each request, then; so is what is `named`.
            named: What else a model passes along.
        """
        own: Any = ALL_ATTENTION_FUNCTIONS.get(self._kind)
        if own is None:
            own = sys.modules[type(module).__module__].eager_attention_forward
        rows = self._rows
        if rows is None:
            found: tuple[torch.Tensor, torch.Tensor | None] = own(
                module, query, key, value, attention_mask, **named
            )
            return found
        layer, made = int(module.layer_idx), []  # type: ignore[arg-type]
        for number, cache in enumerate(self._caches):
            one = slice(number, number + 1)
            if key is rows.keys:
                seen = cache.self_attention_cache.update(key[:, :, one], value[:, :, one], layer)
            else:
                kept = cache.cross_attention_cache.layers[layer]
                seen = kept.keys, kept.values
            theirs = {name: self._of(each, number) for name, each in named.items()}
            mask = self._of(attention_mask, number)
            made.append(own(module, query[:, :, one], *seen, mask, **theirs)[0])
        return torch.cat(made, 1), None


def _leaves(values: Iterable[Any]) -> Iterator[Any]:
    """Yield `values`, and in place of tuples and lists what is in them."""
    for value in values:
        if isinstance(value, tuple | list):
            yield from _leaves(value)
        else:
            yield value


def _stand_in(value: torch.Tensor) -> torch.Tensor:
    """Return what stands for what each request has where the first has `value`.

    Only attention knows whose that is. What does anything else with it makes of it what is not
    finite, which `WholeCheck` sees; whole numbers are those of the first.
    """
    if not value.is_floating_point():
        return value
    return value.new_full((), torch.nan).expand_as(value)


class JointLayer(Joint):
    """Stands where a layer of a decoder stood."""

    def __init__(
        self, own: nn.Module, attention: JointAttention, turns: Turns, number: int, side: int
    ) -> None:
        super().__init__()
        self.own = own
        """The model's own."""
        self.number = number
        self.side = side
        self._attention = attention
        self._turns = turns

    def made(self, calls: Sequence[Any]) -> list[Any]:
        """Return what the layer makes of the tokens of all requests, for each."""
        return self._attention.made(self.own, calls)

    def forward(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """Return what the layer makes of tokens of one request."""
        call = Call(args, kwargs)
        if self._turns.joins and call.goes_on(self._attention.num_layers):
            return self._turns.join(self, call)
        return self.own(*args, **kwargs)


def join_layers(
    decoder: nn.Module, attention: JointAttention, turns: Turns, count: int, side: int
) -> None:
    """Let the layers of `decoder`, of which there are `count`, take requests together.

    Args:
        decoder: It.
        attention: What attends in it.
        turns: Lets requests wait for each other.
        count: Number of its layers.
        side: Which of the tokens of a request they are given.
    """
    layers = next(
        part for part in decoder.modules() if isinstance(part, nn.ModuleList) and len(part) == count
    )
    for place, layer in list(enumerate(layers))[1:]:
        groups = [part.place.group for part in layer.modules() if isinstance(part, PackedPart)]
        layers[place] = JointLayer(layer, attention, turns, 2 * min(groups) - 1, side)


def part_layers(decoder: nn.Module) -> None:
    """Undo that."""
    for part in list(decoder.modules()):
        if isinstance(part, nn.ModuleList):
            for place, layer in enumerate(part):
                if isinstance(layer, JointLayer):
                    part[place] = layer.own
