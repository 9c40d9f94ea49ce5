"""A base whose experts are saved in MXFP4, as those of gpt-oss are: 4 bits and a factor for 32.

Source: OCP Microscaling Formats (MX) specification 1.0, E2M1 with scales of E8M0.

Legend: E experts, N output width, K input width, G blocks of 32 inputs.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel

_VALUES = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
_BLOCK = 32
_WEIGHTS = ("gate_up_proj", "down_proj")


def encode(weight_ENK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return pairs of numbers of 4 bits, [E, N, G, 16], and the factors' exponents, [E, N, G]."""
    blocks = weight_ENK.float().unflatten(-1, (-1, _BLOCK))
    largest = blocks.abs().amax(-1).clamp(min=2.0**-100)
    exponent = torch.floor(torch.log2(largest)) - 2  # of 4 and 6, the largest numbers
    scaled = blocks / torch.exp2(exponent)[..., None]
    code = (scaled.abs()[..., None] - _VALUES).abs().argmin(-1) + 8 * (scaled < 0)
    pairs = code[..., 0::2] + 16 * code[..., 1::2]
    return pairs.to(torch.uint8), (exponent + 127).to(torch.uint8)


def decode(pairs: torch.Tensor, exponents: torch.Tensor) -> torch.Tensor:
    """Return the weights that `encode` made these of, [E, N, K], rounded as they were."""
    code = torch.stack([pairs % 16, pairs // 16], -1).flatten(-2).int()
    values = _VALUES[code % 8] * torch.where(code < 8, 1.0, -1.0)
    return (values * torch.exp2(exponents.float() - 127)[..., None]).flatten(-2)


def save_mxfp4(model: PreTrainedModel, folder: Path) -> Path:
    """Save `model` with experts in MXFP4 to `folder`, and give them the numbers that are there."""
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        if name.endswith(_WEIGHTS):
            pairs, exponents = encode(tensors.pop(name).transpose(1, 2))
            tensors[f"{name}_blocks"], tensors[f"{name}_scales"] = pairs, exponents
            parameter.data = decode(pairs, exponents).transpose(1, 2).to(parameter.dtype)
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = model.config.to_dict() | {
        "quantization_config": {
            "quant_method": "mxfp4",
            "modules_to_not_convert": [
                "model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens",
                "lm_head",
            ],
        },
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder
