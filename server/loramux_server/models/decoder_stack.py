"""The layers of a model fused into one, if they consist of the usual parts of a decoder.

A layer is recognized by its submodules: a norm, attention with rotary embeddings, a norm, a gated
MLP. Its code is not read; the self-check, which runs the model both ways, verifies that it computes
what it seems to.
"""

import math
import operator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn
from transformers import PreTrainedModel

from loramux_server.kernels.decoder import Decoder, DecoderLayer, Norm
from loramux_server.lora.shard import Shard, Split
from loramux_server.models.attention import AttentionBridge
from loramux_server.models.fused import GatedMlp, RmsNorm
from loramux_server.models.packed_linear import PackedLinear, PackedPart
from loramux_server.models.repeated_decoder import Repeat, RepeatedDecoder
from loramux_server.models.step import Step

_PARTS = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")
_HEAD_NORMS = ("q_norm", "k_norm")
_Part = TypeVar("_Part", bound=nn.Module)


@dataclass(frozen=True, slots=True)
class _Recognized:
    """The parts of one layer of the model."""

    number: int
    attention_norm: RmsNorm
    qkv: PackedLinear
    head_norms: tuple[RmsNorm, RmsNorm] | None
    output: PackedLinear
    mlp_norm: RmsNorm
    mlp: GatedMlp


class DecoderStack(nn.Module):
    """Takes the place of the first layer, and computes all of them."""

    def __init__(self, layers: nn.ModuleList, step: Step, bridge: AttentionBridge) -> None:
        """Replace `layers`; `restore` undoes it.

        Raises:
            ValueError: They consist of other parts.
        """
        super().__init__()
        self._found = [_recognized(layer) for layer in layers]
        for found in self._found:
            sinks = bridge.forms[found.number].sinks_H
            if not (sinks is None or isinstance(sinks, nn.Parameter)):
                raise ValueError("attention sinks are recomputed in each step")
        self.originals = list(layers)
        """The model's own layers."""
        # In a list, so that torch does not register it as a submodule.
        self._places = [layers]
        self._step = step
        self._bridge = bridge
        self._decoder: Decoder | None = None
        self._repeated: RepeatedDecoder | None = None
        self._rope: tuple[torch.Tensor, ...] = ()
        """The rotary cosines and sines that the first layer was given in this step."""
        self._inside = {part for original in self.originals for part in original.modules()}
        for index, original in enumerate(self.originals):
            layers[index] = _Passing(original, self) if index else self
        self.attention_type = getattr(self.originals[0], "attention_type", None)

    def restore(self) -> None:
        """Put the model's own layers back."""
        for index, original in enumerate(self.originals):
            self._places[0][index] = original

    def holds(self, part: nn.Module) -> bool:
        """Return whether `part` is one of the layers or inside one."""
        return part in self._inside

    def keep_shard(self, shard: Shard) -> None:
        """Keep only the part of each layer that belongs to `shard`: its heads, its MLP columns.

        Raises:
            ValueError: The sizes are not divisible; nothing is changed then.
        """
        sizes = sorted({size for found in self._found for size in self._sizes(found)})
        if any(number % shard.count for number, _ in sizes):
            common = math.gcd(*(number for number, _ in sizes))
            fitting = (str(count) for count in range(1, common + 1) if common % count == 0)
            raise ValueError(
                f"tensor_parallel is {shard.count}, which does not divide the layers' "
                f"{', '.join(f'{number} {what}' for number, what in sizes)}; "
                f"expected one of {', '.join(fitting)}"
            )
        self._decoder = self._repeated = None  # they hold all of the weights
        for found in self._found:
            found.qkv.keep_shard(Split.OUTPUTS, shard)
            found.output.keep_shard(Split.INPUTS, shard)
            found.mlp.gate_up.keep_shard(Split.OUTPUTS, shard)
            found.mlp.down_proj.packed.keep_shard(Split.INPUTS, shard)
            self._bridge.keep_shard(found.number, shard)

    def _sizes(self, found: _Recognized) -> list[tuple[int, str]]:
        """Return the sizes of a layer that must be divisible."""
        queries, keys, _ = found.qkv.shape.out_features
        heads = self._bridge.shapes[found.number].num_heads
        inner = found.mlp.down_proj.packed.shape.in_features
        return [
            (queries * heads // keys, "query heads"),
            (heads, "key and value heads"),
            (inner, "MLP columns"),
        ]

    def move(self, device: torch.device) -> None:
        """Move the layers' norms to `device`; their packed layers are moved separately."""
        self._decoder = self._repeated = None
        self._rope = ()
        for original in self.originals:
            original.to(device)

    def prepare(self, repeat: Repeat | None = None) -> None:
        """Build the decoder from the current weights, cache, slab and backend.

        Args:
            repeat: Records and replays the layers of steps that have a key for them.
        """
        backend = self._step.backend
        self._decoder = backend.make_decoder([self._layer(found) for found in self._found], backend)
        self._repeated = repeat and RepeatedDecoder(self._decoder, repeat)

    def forward(
        self,
        hidden_states: torch.Tensor,
        *,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        **kwargs: Any,  # noqa: ANN401
    ) -> torch.Tensor:
        """Return the output of the last layer for `hidden_states`, [1, T, K]."""
        self._rope = cos, sin = position_embeddings
        batch, segments = self._step.attention, self._step.segments
        assert batch is not None
        is_special = self._step.adds or batch.bidirectional_T2 is not None
        if is_special or (segments is not None and segments.needs_model_layers):
            for layer in self.originals:
                hidden_states = layer(
                    hidden_states, position_embeddings=position_embeddings, **kwargs
                )
            return hidden_states
        given = hidden_states[0], cos[0], sin[0], batch, segments
        key = self._step.layers_graph_key
        if key is not None and self._repeated is not None:
            return self._repeated(key, *given)[None]
        assert self._decoder is not None
        return self._decoder(*given)[None]

    def uses_rope(self, position_embeddings: tuple[torch.Tensor, ...] | None) -> bool:
        """Return whether these are the cosines and sines that the first layer used in this step."""
        given = position_embeddings or ()
        return len(given) == len(self._rope) and all(map(operator.is_, given, self._rope))

    def _layer(self, found: _Recognized) -> DecoderLayer:
        keys, values = self._bridge.cache(found.number)
        query_norm, key_norm = found.head_norms or (None, None)
        return DecoderLayer(
            attention_norm=_norm(found.attention_norm),
            qkv=found.qkv.projection(),
            query_norm=_norm(query_norm) if query_norm else None,
            key_norm=_norm(key_norm) if key_norm else None,
            keys_SJD=keys,
            values_SJD=values,
            form=self._bridge.forms[found.number],
            output=found.output.projection(),
            mlp_norm=_norm(found.mlp_norm),
            gate_up=found.mlp.gate_up.projection(),
            down=found.mlp.down_proj.packed.projection(),
        )


class _Passing(nn.Module):
    """Takes the place of the other layers, and passes on what it gets."""

    def __init__(self, original: nn.Module, stack: DecoderStack) -> None:
        super().__init__()
        # In a list for the same reason.
        self._stacks = [stack]
        self.attention_type = getattr(original, "attention_type", None)

    def forward(
        self,
        hidden_states: torch.Tensor,
        *,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None,
        **kwargs: Any,  # noqa: ANN401
    ) -> torch.Tensor:
        """Return `hidden_states`, which have passed all layers already.

        Raises:
            ValueError: This layer has other rotary embeddings than the first.
        """
        if not self._stacks[0].uses_rope(position_embeddings):
            raise ValueError("layers have different rotary embeddings")
        return hidden_states


def find_layers(module: PreTrainedModel, bridge: AttentionBridge) -> nn.ModuleList | None:
    """Return the list of the layers of `module` that attend over `bridge`; None if not found."""
    found = [
        part
        for part in module.modules()
        if isinstance(part, nn.ModuleList)
        and len(part) == len(bridge.shapes)
        and getattr(part[0], "self_attn", None) in bridge.attending
    ]
    return found[0] if len(found) == 1 else None


def _recognized(layer: nn.Module) -> _Recognized:
    """Return the parts of `layer`.

    Raises:
        ValueError: It consists of other parts.
    """
    parts = dict(layer.named_children())
    attention = parts.get("self_attn", nn.Module())
    inside = dict(attention.named_children())
    has_head_norms = inside.keys() == {*_PROJECTIONS, *_HEAD_NORMS}
    if parts.keys() != _PARTS or not (has_head_norms or inside.keys() == {*_PROJECTIONS}):
        raise ValueError(f"a layer of {sorted(parts)} with {sorted(inside)} is not supported")
    q, k, v, output = (_expect(PackedPart, inside[name]) for name in _PROJECTIONS)
    if not q.packed is k.packed is v.packed or [q.part, k.part, v.part] != [0, 1, 2]:
        raise ValueError("query, key and value have different inputs")
    head_norms = None
    if has_head_norms:
        head_norms = (_expect(RmsNorm, inside["q_norm"]), _expect(RmsNorm, inside["k_norm"]))
        if any(len(norm.weight) != attention.head_dim for norm in head_norms):
            raise ValueError("queries and keys are normalized across heads")
    return _Recognized(
        number=int(attention.layer_idx),  # type: ignore[arg-type]
        attention_norm=_expect(RmsNorm, parts["input_layernorm"]),
        qkv=q.packed,
        head_norms=head_norms,
        output=output.packed,
        mlp_norm=_expect(RmsNorm, parts["post_attention_layernorm"]),
        mlp=_expect(GatedMlp, parts["mlp"]),
    )


def _expect(kind: type[_Part], part: nn.Module) -> _Part:
    if not isinstance(part, kind):
        raise ValueError(f"{type(part).__name__} instead of {kind.__name__}")
    return part


def _norm(norm: RmsNorm) -> Norm:
    return Norm(norm.weight, norm.epsilon)
