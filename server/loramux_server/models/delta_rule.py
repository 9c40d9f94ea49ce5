"""Layers of linear attention whose states learn one token where they lie.

transformers takes a request's state, makes several others of it, and gives one back. What layers
call for that is found by its name, tried against our operation on random numbers, and replaced if
it gives the same; it then changes slots, of which nothing is copied.
"""

import inspect
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from loramux_server.models.rebound import calls, rebound
from loramux_server.models.step import Step

_NAMES = ("torch_recurrent_gated_delta_rule", "recurrent_kimi_delta_attention")
_EPSILON = 1e-6
_TOLERANCE = 1e-5


class DeltaRule:
    """Stands where a layer's forward calls the rule for one token of each text.

    Legend: T requests, H value heads, J key heads, K key width, V value width, S slots.
    """

    def __init__(self, original: Callable[..., Any], step: Step) -> None:
        self._original = original
        self._step = step
        self._states: torch.Tensor | None = None
        self._slots = (torch.empty(0), torch.empty(0))

    @staticmethod
    def put_into(layer: nn.Module, shape: tuple[int, ...], step: Step) -> "DeltaRule | None":
        """Let `layer` call it, if it calls such a rule; else return None.

        Args:
            layer: A recurrent one.
            shape: Of its state.
            step: The step that runs.
        """
        forward = inspect.unwrap(type(layer).forward)
        name = next((name for name in _NAMES if calls(forward, name)), None)
        if name is None or len(shape) != 3:
            return None
        rule = DeltaRule(forward.__globals__[name], step)
        if not rule._is_same(*shape):
            return None
        layer.forward = types.MethodType(rebound(forward, name, rule), layer)
        return rule

    def begin(self, state_SHKV: torch.Tensor, read_T: torch.Tensor, write_T: torch.Tensor) -> None:
        """Let the next call that is given all slots change those of some requests."""
        self._states, self._slots = state_SHKV, (read_T, write_T)

    def __call__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        g: torch.Tensor,
        beta: torch.Tensor,
        initial_state: torch.Tensor | None = None,
        output_final_state: bool = False,
        use_qk_l2norm_in_kernel: bool = False,
        **kwargs: Any,  # noqa: ANN401
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return what each request reads, [T, 1, H, V], and the states.

        Args:
            query: [T, 1, J, K].
            key: Likewise.
            value: [T, 1, H, V].
            g: Logarithms of decays, [T, 1, H] or [T, 1, H, K].
            beta: [T, 1, H].
            initial_state: All slots, [S, H, K, V], as `begin` was given them; else one state for
                each request, which the layer's own rule takes.
            output_final_state: Whether states are wanted.
            use_qk_l2norm_in_kernel: Whether queries and keys are still to be normalized.
            kwargs: What else a layer passes along.
        """
        if initial_state is None or initial_state is not self._states:
            return self._original(  # type: ignore[no-any-return]
                query, key, value, g=g, beta=beta, initial_state=initial_state,
                output_final_state=output_final_state,
                use_qk_l2norm_in_kernel=use_qk_l2norm_in_kernel, **kwargs,
            )  # fmt: skip
        self._states = None
        q, k, v, log_decay, rate = (x[:, 0].float() for x in (query, key, value, g, beta))
        if use_qk_l2norm_in_kernel:
            q, k = (x * torch.rsqrt((x * x).sum(-1, keepdim=True) + _EPSILON) for x in (q, k))
        q = q * q.shape[-1] ** -0.5
        decay = log_decay.exp()
        if decay.dim() == 2:
            decay = decay[..., None].expand(*decay.shape, k.shape[-1])
        out = self._step.backend.delta_rule(q, k, v, decay, rate, initial_state, *self._slots)
        return out[:, None].to(value.dtype), initial_state

    def _is_same(self, heads: int, key_width: int, value_width: int) -> bool:
        """Return whether it computes what the layer's own does, in one of the two forms."""
        generator = torch.Generator().manual_seed(0)

        def random(*size: int) -> torch.Tensor:
            return torch.randn(*size, generator=generator)

        q, k = (random(2, 1, heads, key_width) for _ in range(2))
        v, beta = random(2, 1, heads, value_width), random(2, 1, heads).sigmoid()
        slots = random(4, heads, key_width, value_width)
        read_T, write_T = torch.tensor([1, 2]), torch.tensor([1, 3])
        for size in ((2, 1, heads), (2, 1, heads, key_width)):
            named: dict[str, Any] = {
                "g": -random(*size).abs(), "beta": beta, "output_final_state": True,
                "use_qk_l2norm_in_kernel": True,
            }  # fmt: skip
            try:
                wanted = self._original(q, k, v, initial_state=slots[read_T], **named)
                found = slots.clone()
                self.begin(found, read_T, write_T)
                out, _ = self(q, k, v, initial_state=found, **named)
            except (RuntimeError, TypeError, ValueError, IndexError, AttributeError):
                continue
            if _is_close(out, wanted[0]) and _is_close(found[write_T], wanted[1]):
                return True
        return False


def _is_close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and bool((a - b).abs().max() <= _TOLERANCE * (1 + b.abs().max()))
