"""The bridge from transformers' attention interface to the paged KV cache.

Source of the interface: `transformers.AttentionInterface`. A model calls the registered function
with query, key and value of one layer. Positions and masks are ours, so no mask function is
registered under that name, and models make no masks.
"""

import itertools
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface

from loramux_server.kernels.attention import AttentionForm
from loramux_server.lora.shard import Shard
from loramux_server.lora.virtual import VirtualRun
from loramux_server.models.step import Step

_numbers = itertools.count()
_POSITIONS = {"position_ids", "cache_position"}
"""Arguments that models pass to attention although queries and keys include them already."""


@dataclass(frozen=True, slots=True)
class CacheShape:
    """What one layer caches per token."""

    num_heads: int
    key_width: int
    value_width: int

    @property
    def weights(self) -> int:
        """Number of elements per token."""
        return self.num_heads * (self.key_width + self.value_width)


class AttentionBridge:
    """The attention function of one model; owns the KV cache of its layers."""

    def __init__(self, step: Step) -> None:
        self._step = step
        self.shapes: dict[int, CacheShape] = {}
        """Layer number -> what it caches per token; recorded when the model first runs."""
        self.forms: dict[int, AttentionForm] = {}
        """Layer number -> scale, window, softcap and sinks of its attention; recorded likewise."""
        self.attending: list[nn.Module] = []
        """The attention modules; recorded likewise."""
        self._keys: dict[int, torch.Tensor] = {}
        self._values: dict[int, torch.Tensor] = {}
        self.name = f"loramux-{next(_numbers)}"
        AttentionInterface.register(self.name, self)

    def keep_shard(self, layer: int, shard: Shard) -> None:
        """Keep only the heads of a layer that belong to `shard`."""
        shape = self.shapes[layer]
        self.shapes[layer] = replace(shape, num_heads=shape.num_heads // shard.count)
        sinks = self.forms[layer].sinks_H
        if sinks is not None:  # a parameter of the layer, which it still uses
            sinks.data = sinks.data[shard.of(len(sinks))].clone()

    def allocate(self, num_slots: int, dtype: torch.dtype, device: torch.device) -> None:
        """Allocate the cache: `num_slots` tokens per layer. Memory is committed on first touch."""
        for layer, shape in self.shapes.items():
            size = (num_slots, shape.num_heads)
            self._keys[layer] = torch.empty(*size, shape.key_width, dtype=dtype, device=device)
            self._values[layer] = torch.empty(*size, shape.value_width, dtype=dtype, device=device)

    def release(self) -> None:
        """Free the cache; `allocate` makes a new one."""
        self._keys.clear()
        self._values.clear()

    def cache(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the cached keys and values of a layer, [S, J, D] and [S, J, E]."""
        return self._keys[layer], self._values[layer]

    def fill(self, run: VirtualRun) -> None:
        """Write keys and values of virtual tokens into the cache, unchanged."""
        for layer, keys_SJD in self._keys.items():
            slots = run.place_V.to(keys_SJD.device)
            values_SJE = self._values[layer]
            keys_SJD[slots] = run.virtual.keys[layer][run.numbers].to(keys_SJD.dtype)
            values_SJE[slots] = run.virtual.values[layer][run.numbers].to(values_SJE.dtype)

    def __call__(
        self,
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float | None = None,
        sliding_window: int | None = None,
        softcap: float | None = None,
        s_aux: torch.Tensor | None = None,
        **kwargs: Any,  # noqa: ANN401
    ) -> tuple[torch.Tensor, None]:
        """Attend for one layer.

        Args:
            module: The attention layer, which knows its number.
            query: [1, H, T, D].
            key: [1, J, T, D].
            value: [1, J, T, E].
            attention_mask: None, unless the model makes one of its own.
            scaling: Scale of the scores; D ** -0.5 if absent.
            sliding_window: Tokens that a token sees, including itself; all before it if absent.
            softcap: Bound of the scores; none if absent.
            s_aux: Attention sinks, [H]; none if absent.
            kwargs: Other arguments of the model.

        Returns:
            The output as [1, T, H, E], and no weights.
        """
        layer = int(module.layer_idx)  # type: ignore[arg-type]
        form = AttentionForm(
            scale=query.shape[-1] ** -0.5 if scaling is None else scaling,
            window=sliding_window or 0,
            softcap=softcap or 0.0,
            sinks_H=s_aux,
        )
        q_THD, k_TJD, v_TJE = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
        batch = self._step.attention
        if batch is None:
            self._check(layer, attention_mask, s_aux, query.shape[1], kwargs)
            self.forms[layer] = form
            self.attending.append(module)
            self.shapes[layer] = CacheShape(key.shape[1], key.shape[3], value.shape[3])
            return query.new_zeros(1, q_THD.shape[0], q_THD.shape[1], value.shape[3]), None
        backend = self._step.backend
        keys, values = self.cache(layer)
        backend.write_cache(keys, values, k_TJD, v_TJE, batch)
        return backend.paged_attention(q_THD, keys, values, batch, form)[None], None

    def _check(
        self,
        layer: int,
        attention_mask: torch.Tensor | None,
        s_aux: torch.Tensor | None,
        num_heads: int,
        kwargs: dict[str, Any],
    ) -> None:
        """Refuse anything that would otherwise be ignored."""
        if s_aux is not None and s_aux.shape != (num_heads,):
            raise NotImplementedError(
                f"attention sinks have shape {list(s_aux.shape)}; expected [{num_heads}], one for "
                "each head"
            )
        if attention_mask is not None:
            raise NotImplementedError("the model passes its own attention mask")
        if layer in self.shapes:
            raise NotImplementedError(f"layer {layer} calls attention twice")
        for name, value in kwargs.items():
            if isinstance(value, torch.Tensor) and name not in _POSITIONS:
                raise NotImplementedError(f"attention depends on {name}")
