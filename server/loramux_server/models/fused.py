"""Fused replacements of parts that transformers computes in many passes over memory.

Norms, gated MLPs and rotary embeddings are the same in most models; their modelling code differs in
spelling only. Each candidate is compared with our operation on random numbers, and replaced if the
results agree. What is not recognized is left alone.
"""

import inspect
import types
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import nn

from loramux_server.models.packed_linear import PackedLinear, PackedPart
from loramux_server.models.rebound import calls, rebound
from loramux_server.models.step import Step

_TOLERANCE = 1e-5


class RmsNorm(nn.Module):
    """Takes the place of an RMS norm."""

    def __init__(self, weight_K: torch.Tensor, epsilon: float, step: Step, offset: int = 0) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight_K + offset if offset else weight_K, requires_grad=False)
        self.offset = offset
        """What was added to the model's own weight."""
        self.epsilon = epsilon
        self._step = step

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return `x` normalized over its last dimension."""
        return self._step.backend.rms_norm(x, self.weight, self.epsilon)


class GatedMlp(nn.Module):
    """Takes the place of a gated MLP with SiLU."""

    def __init__(self, gate_up: PackedLinear, down: PackedPart, step: Step) -> None:
        super().__init__()
        self.down_proj = down
        self.gate_up = gate_up
        self._step = step

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return `down(silu(gate(x)) * up(x))`."""
        hidden: torch.Tensor = self.down_proj(self._step.backend.silu_mul(self.gate_up.compute(x)))
        return hidden


def fuse(module: nn.Module, step: Step, called: Collection[nn.Module]) -> None:
    """Replace what is recognized in `module`, whose linear layers are packed already.

    Args:
        module: The model.
        step: The step object of its layers.
        called: The modules that run in steps. Others may run concurrently, and keep their own
            operations.
    """
    parts = [(name, part) for name, part in module.named_modules() if part in called]
    with torch.inference_mode():
        for name, part in parts:
            new = _norm(part, step) or _mlp(part, step)
            if new is not None:
                module.set_submodule(name, new)
    _fuse_rotary([part for _, part in parts], step)


def _norm(part: nn.Module, step: Step) -> RmsNorm | None:
    weight = getattr(part, "weight", None)
    epsilon = getattr(part, "variance_epsilon", getattr(part, "eps", None))
    if "RMSNorm" not in type(part).__name__ or not isinstance(weight, nn.Parameter):
        return None
    if weight.dim() != 1 or not len(weight) or not isinstance(epsilon, float):
        return None
    if len(inspect.signature(part.forward).parameters) > 1:  # others also take a gate
        return None
    x = _random(1, 3, len(weight), like=weight)
    # Gemma's weights are offsets from one.
    for candidate in (RmsNorm(weight, epsilon, step), RmsNorm(weight, epsilon, step, offset=1)):
        if _same(part, candidate, x):
            return candidate
    return None


def _mlp(part: nn.Module, step: Step) -> GatedMlp | None:
    gate, up = getattr(part, "gate_proj", None), getattr(part, "up_proj", None)
    down = getattr(part, "down_proj", None)
    if not all(isinstance(layer, PackedPart) for layer in (gate, up, down)):
        return None
    assert isinstance(gate, PackedPart)
    assert isinstance(up, PackedPart)
    assert isinstance(down, PackedPart)
    if gate.packed is not up.packed or (gate.part, up.part) != (0, 1):
        return None
    candidate = GatedMlp(gate.packed, down, step)
    x = _random(1, 3, gate.packed.shape.in_features, like=gate.packed)
    return candidate if _same(part, candidate, x) else None


def _fuse_rotary(parts: Sequence[nn.Module], step: Step) -> None:
    """Let attention layers call our rotary embedding in place of the one that they look up."""
    forwards: dict[type[nn.Module], Callable[..., Any] | None] = {}
    for layer in parts:
        kind = type(layer)
        if kind not in forwards:
            forwards[kind] = _with_rotary(kind.forward, step)
        if (forward := forwards[kind]) is not None:
            layer.forward = types.MethodType(forward, layer)


def _with_rotary(forward: Callable[..., Any], step: Step) -> Callable[..., Any] | None:
    """Return `forward` with our `apply_rotary_pos_emb`; None if its own is not equivalent."""
    name = "apply_rotary_pos_emb"
    if not calls(forward, name):
        return None
    original = forward.__globals__[name]

    def rotated(
        q: torch.Tensor,
        k: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        *rest: object,
        **named: object,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        is_usual = len(q) == 1 and cos.shape[-1] == q.shape[-1] and q.dtype == cos.dtype
        if rest or named or not is_usual:
            return original(q, k, cos, sin, *rest, **named)  # type: ignore[no-any-return]
        q_THD, k_TJD = q[0].transpose(0, 1), k[0].transpose(0, 1)
        step.backend.rotate(q_THD, k_TJD, cos[0], sin[0])
        return q, k

    if not _same_rotation(original, rotated):
        return None
    return rebound(forward, name, rotated)


def _same_rotation(original: Callable[..., Any], rotated: Callable[..., Any]) -> bool:
    q, k, cos, sin = (_random(1, heads, 3, 64) for heads in (4, 2, 1, 1))
    try:
        expected = original(q.clone(), k.clone(), cos[0], sin[0])
        found = rotated(q.clone(), k.clone(), cos[0], sin[0])
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError):
        return False
    return all(_close(a, b) for a, b in zip(expected, found, strict=True))


def _same(part: nn.Module, candidate: nn.Module, x: torch.Tensor) -> bool:
    return _close(part(x), candidate(x))


def _close(a: torch.Tensor, b: torch.Tensor) -> bool:
    # In 16 bits one more or less rounding; in float32 another order of summation.
    tolerance = max(_TOLERANCE, 2 * torch.finfo(a.dtype).eps)
    return a.shape == b.shape and bool((a - b).abs().max() <= tolerance * (1 + a.abs().max()))


def _random(*size: int, like: torch.Tensor | PackedLinear | None = None) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(*size, generator=generator)
    return x if like is None else x.to(like.device, like.dtype)
