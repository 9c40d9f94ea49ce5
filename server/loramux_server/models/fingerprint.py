"""A digest that identifies a base model: its architecture, weights and tokenizer."""

import hashlib
from collections.abc import Iterator

import torch
from transformers import PreTrainedModel

from loramux_server.models.quantized import is_quantized

_SAMPLES = 4096


def fingerprint(module: PreTrainedModel, tokenizer_json: str | None) -> str:
    """Return a digest of architecture, tokenizer, and shape and sampled values of each weight."""
    digest = hashlib.sha256(type(module).__name__.encode())
    for name, weight in sorted(_weights(module)):
        digest.update(f"\0{name}\0{tuple(weight.shape)}\0".encode())
        flat = weight.detach().reshape(-1)
        step = max(1, flat.numel() // _SAMPLES)
        digest.update(flat[::step].float().cpu().numpy().tobytes())
    digest.update((tokenizer_json or "").encode())
    return f"sha256:{digest.hexdigest()}"


def _weights(module: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield all parameters, and the other tensors of quantized layers, as plain tensors."""
    found = dict(module.named_parameters())
    for name, layer in module.named_modules():
        if is_quantized(layer):
            # The scales of bitsandbytes are not parameters, but they are saved.
            state = layer.state_dict(prefix=f"{name}.", keep_vars=True)
            found |= {key: value for key, value in state.items() if key not in found}
    for name, weight in found.items():
        yield from _inner(name, weight)


def _inner(name: str, weight: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield `weight`, or the tensors that a tensor subclass consists of."""
    if not hasattr(weight, "__tensor_flatten__"):
        yield name, weight
        return
    for part in weight.__tensor_flatten__()[0]:
        yield from _inner(f"{name}.{part}", getattr(weight, part))
