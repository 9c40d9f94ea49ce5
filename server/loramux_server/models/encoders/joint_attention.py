"""Attention for a decoder layer of an encoder-decoder that runs for several requests at once.

The layer is called once, with the next tokens of all requests in one row (`joint_layers.py`).
Attention to what each request has cached is computed per request.

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

from loramux_server.kernels.row_attention import Context
from loramux_server.models.attention import CacheShape
from loramux_server.models.step import Step

_numbers = itertools.count()
_KNOWN = {"dropout", "scaling", "position_bias", "is_causal"}
"""Arguments besides the mask that `kernels.row_attention` supports."""


@dataclass(frozen=True, slots=True)
class Call:
    """The arguments with which a layer is called for one request."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    values: tuple[Any, ...]
    """All arguments, flattened, in an order that is the same for all requests."""
    cache: EncoderDecoderCache | None
    """The request's cache; None if there is none."""

    @staticmethod
    def of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> "Call":
        """Return the call with these arguments."""
        values = tuple(_leaves((*args, *kwargs.values())))
        caches = (each for each in values if isinstance(each, EncoderDecoderCache))
        return Call(args, kwargs, values, next(caches, None))

    @property
    def hidden(self) -> torch.Tensor:
        """The hidden states, [1, tokens, K]."""
        hidden: torch.Tensor = self.args[0] if self.args else self.kwargs["hidden_states"]
        return hidden

    def is_decode_step(self, num_layers: int) -> bool:
        """Return whether it is one token of a request whose source is cached in all layers."""
        cache = self.cache
        if cache is None or self.hidden.shape[:2] != (1, 1):
            return False
        num_known: int = sum(cache.is_updated.values())
        return num_known == num_layers


class _Rows(EncoderDecoderCache):  # type: ignore[misc]
    """Stands in for the requests' caches, which attention then uses one by one."""

    def __init__(
        self, shapes: Sequence[CacheShape], dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__(DynamicCache(), DynamicCache())
        self.self_attention_cache = self
        self.cross_attention_cache = SimpleNamespace(
            layers=[
                SimpleNamespace(
                    keys=torch.empty(
                        1, shape.num_heads, 1, shape.key_width, dtype=dtype, device=device
                    ),
                    values=torch.empty(
                        1, shape.num_heads, 1, shape.value_width, dtype=dtype, device=device
                    ),
                )
                for shape in shapes
            ]
        )
        self.is_updated = dict.fromkeys(range(len(shapes)), True)
        self.keys: torch.Tensor | None = None
        """Keys of the tokens in the row, [1, H, B, D]."""

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        *_: Any,  # noqa: ANN401
        **__: Any,  # noqa: ANN401
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return keys and values of the tokens in the row."""
        self.keys = key_states
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return 0: models that need the length read it in the first layer, not here."""
        del layer_idx
        return 0


class JointAttention:
    """The model's own attention; if a row holds tokens of several requests, per request."""

    def __init__(self, module: PreTrainedModel, shapes: Sequence[CacheShape], step: Step) -> None:
        """Replace the attention of `module`.

        Args:
            module: The model.
            shapes: What each layer of its decoder caches per token.
            step: Knows the backend of the running step.

        Raises:
            KeyError: Its attention implementation is unknown.
        """
        self._module = module
        self._step = step
        self._kind = str(module.config._attn_implementation)
        self.num_layers = len(shapes)
        """Layers of the decoder."""
        self._rows = _Rows(shapes, module.dtype, module.device)
        self._is_joint = False
        """Whether a row of several requests is running."""
        self._per_request: dict[int, list[Any]] = {}
        """Identity of a stand-in -> the value of each request that it stands for."""
        self._caches: list[EncoderDecoderCache] = []
        name = f"loramux-joint-{next(_numbers)}"
        AttentionInterface.register(name, self)
        AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[self._kind])
        module.set_attn_implementation(name)

    def remove(self) -> None:
        """Restore the model's own attention."""
        self._module.set_attn_implementation(self._kind)

    def run(self, layer: nn.Module, calls: Sequence[Call]) -> list[Any]:
        """Return the output of `layer` for the token of each of `calls`.

        Raises:
            NotImplementedError: It returns more than hidden states, or its arguments have different
                types for different requests.
        """
        hidden_1BK = torch.cat([call.hidden for call in calls], 1)
        first, values = calls[0], [call.values for call in calls]
        if len({tuple(map(type, each)) for each in values}) > 1:
            raise NotImplementedError("a layer takes other types of arguments for other requests")
        stand_ins: dict[int, torch.Tensor] = {}
        self._per_request = {}
        for place, value in enumerate(values[0]):
            if isinstance(value, torch.Tensor) and id(value) not in stand_ins:
                stand_ins[id(value)] = stand_in = _stand_in(value)
                self._per_request[id(stand_in)] = [each[place] for each in values]
        self._caches = [cache for call in calls if (cache := call.cache)]

        def joint(value: Any) -> Any:  # noqa: ANN401
            if value is first.hidden:
                return hidden_1BK
            if isinstance(value, tuple | list):
                return type(value)(map(joint, value))
            if isinstance(value, EncoderDecoderCache):
                return self._rows
            return stand_ins.get(id(value), value)

        self._is_joint = True
        try:
            made = layer(
                *map(joint, first.args),
                **{name: joint(value) for name, value in first.kwargs.items()},
            )
        finally:
            self._is_joint, self._rows.keys = False, None
        hidden, *others = made if isinstance(made, tuple) else (made,)
        found = []
        for number in range(len(calls)):
            of_one = hidden[:, number : number + 1]
            if isinstance(made, tuple):
                of_one = (of_one, *(self._of(other, number) for other in others))
            found.append(of_one)
        self._per_request, self._caches = {}, []
        return found

    def _of(self, value: Any, number: int) -> Any:  # noqa: ANN401
        """Return the value of one request for which `value` stands."""
        if not isinstance(value, torch.Tensor):
            return value
        if id(value) not in self._per_request:
            raise NotImplementedError("a layer returns more than the hidden states of a token")
        return self._per_request[id(value)][number]

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
            module: The attention module, which knows the number of its layer.
            query: [1, H, tokens, D].
            key: Likewise; for cross-attention of a row of several requests, a stand-in.
            value: Likewise.
            attention_mask: The mask; for such a row, a stand-in for the masks of the requests.
            named: Other arguments of the model; likewise.
        """
        original: Any = ALL_ATTENTION_FUNCTIONS.get(self._kind)
        if original is None:
            original = sys.modules[type(module).__module__].eager_attention_forward
        if not self._is_joint:
            found: tuple[torch.Tensor, torch.Tensor | None] = original(
                module, query, key, value, attention_mask, **named
            )
            return found
        contexts = self._contexts(int(module.layer_idx), key, value)  # type: ignore[arg-type]
        attend = self._step.backend.row_attention
        if attend and self._kind == "sdpa" and attention_mask is None and named.keys() <= _KNOWN:
            bias, scale = named.get("position_bias"), named.get("scaling")
            rows = []
            for number, (k, v) in enumerate(contexts):
                theirs = self._of(bias, number)
                rows.append(Context(k[0], v[0], None if theirs is None else theirs[0, :, 0]))
            scale = query.shape[-1] ** -0.5 if scale is None else scale
            return attend(query[0].transpose(0, 1), rows, scale)[None], None
        made = []
        for number, (k, v) in enumerate(contexts):
            theirs = {name: self._of(each, number) for name, each in named.items()}
            mask = self._of(attention_mask, number)
            made.append(original(module, query[:, :, number : number + 1], k, v, mask, **theirs)[0])
        return torch.cat(made, 1), None

    def _contexts(
        self, layer: int, key: torch.Tensor, value: torch.Tensor
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return the keys and values that the token of each request attends to in `layer`."""
        if key is not self._rows.keys:
            kept = (cache.cross_attention_cache.layers[layer] for cache in self._caches)
            return [(each.keys, each.values) for each in kept]
        return [
            cache.self_attention_cache.update(
                key[:, :, number : number + 1], value[:, :, number : number + 1], layer
            )
            for number, cache in enumerate(self._caches)
        ]


def _leaves(values: Iterable[Any]) -> Iterator[Any]:
    """Yield `values`, with tuples and lists flattened."""
    for value in values:
        if isinstance(value, tuple | list):
            yield from _leaves(value)
        else:
            yield value


def _stand_in(value: torch.Tensor) -> torch.Tensor:
    """Return a stand-in for an argument whose value for the first request is `value`.

    Only attention looks up the real value of each request. NaN makes any other use visible to
    `EncoderCheck`. Integers are those of the first request.
    """
    if not value.is_floating_point():
        return value
    return value.new_full((), torch.nan).expand_as(value)
