"""Bases saved with quantized weights, by the layouts that the tools publish, and their numbers.

Legend: N output width, K input width, G groups of inputs.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

GROUP = 16
BLOCK = (32, 20)
"""Neither of which divides all widths of a tiny model."""
Tensors = dict[str, torch.Tensor]
"""What stands behind the name of a layer -> what is saved."""
Quantize = Callable[[torch.Tensor], tuple[Tensors, torch.Tensor]]
"""A weight [N, K] -> the tensors it is saved as, and the numbers that they mean, float32."""


@dataclass(frozen=True)
class Method:
    """A way to save a base."""

    quantize: Quantize
    config: dict[str, Any] = field(hash=False)
    """Its quantization_config."""
    dtype: torch.dtype = torch.float16
    """What the base computes in."""


_KEPT = ("embed_tokens.weight", "lm_head.weight", ".mlp.gate.weight")
"""How names of matrices end that nobody quantizes."""


def packed(values: torch.Tensor, bits: int, dim: int) -> torch.Tensor:
    """Return unsigned numbers of `bits` bits as int32, 32 / `bits` of them along `dim` in each."""
    values = values.long().movedim(dim, -1)
    per_word = 32 // bits
    values = nn.functional.pad(values, (0, -values.shape[-1] % per_word))
    words = sum(
        values[..., place::per_word] * 2 ** (bits * place) for place in range(per_word)
    )  # fmt: skip
    assert isinstance(words, torch.Tensor)
    return torch.where(words < 2**31, words, words - 2**32).int().movedim(-1, dim).contiguous()


def _random(*shape: int, low: int, high: int) -> torch.Tensor:
    return torch.randint(low, high, shape)


def _factors(*shape: int) -> torch.Tensor:
    return (torch.rand(*shape) + 0.5) / 40


def gptq(
    bits: int, *, version: int = 1, symmetric: bool = False, shuffled: bool = False
) -> Quantize:
    """Return what saves a weight as GPTQ does."""

    def quantize(weight_NK: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        (outputs, width), top = weight_NK.shape, 2**bits
        groups = width // GROUP
        q_KN = _random(width, outputs, low=0, high=top)
        zeros_GN = _random(groups, outputs, low=0, high=top)
        if symmetric:
            zeros_GN[:] = top // 2
        scales_GN = (_factors(groups, outputs) * 16 / top).half()
        index_K = torch.arange(width) // GROUP
        if shuffled:
            index_K = index_K[torch.randperm(width)]
        saved_zeros = (zeros_GN - 1) % top if version == 1 else zeros_GN
        tensors = {
            "qweight": packed(q_KN, bits, 0), "qzeros": packed(saved_zeros, bits, 1),
            "scales": scales_GN, "g_idx": index_K.int(),
        }  # fmt: skip
        known_KN = scales_GN.float()[index_K] * (q_KN - zeros_GN[index_K])
        return tensors, known_KN.T

    return quantize


def awq(weight_NK: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    """Save a weight as AutoAWQ's layout "gemm" does."""
    outputs, width = weight_NK.shape
    q_KN = _random(width, outputs, low=0, high=16)
    zeros_GN = _random(width // GROUP, outputs, low=0, high=16)
    scales_GN = _factors(width // GROUP, outputs).half()
    order = [8 * (place // 8) + (0, 2, 4, 6, 1, 3, 5, 7)[place % 8] for place in range(outputs)]
    tensors = {
        "qweight": packed(q_KN[:, order], 4, 1), "qzeros": packed(zeros_GN[:, order], 4, 1),
        "scales": scales_GN,
    }  # fmt: skip
    index_K = torch.arange(width) // GROUP
    return tensors, (scales_GN.float()[index_K] * (q_KN - zeros_GN[index_K])).T


def pack_quantized(
    bits: int, *, symmetric: bool = True, by_channel: bool = False, shuffled: bool = False
) -> Quantize:
    """Return what saves a weight as compressed-tensors does, packed."""

    def quantize(weight_NK: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        (outputs, width), half = weight_NK.shape, 2 ** (bits - 1)
        groups = 1 if by_channel else width // GROUP
        q_NK = _random(outputs, width, low=-half, high=half)
        scale_NG = (_factors(outputs, groups) * 8 / half).bfloat16()
        zero_NG = _random(outputs, groups, low=-half, high=half)
        tensors = {
            "weight_packed": packed(q_NK + half, bits, 1), "weight_scale": scale_NG,
            "weight_shape": torch.tensor([outputs, width]),
        }  # fmt: skip
        if symmetric:
            zero_NG[:] = 0
        else:
            tensors["weight_zero_point"] = packed(zero_NG + half, bits, 0)
        index_K = torch.arange(width) // (width // groups)
        if shuffled:
            index_K = index_K[torch.randperm(width)]
            tensors["weight_g_idx"] = index_K.int()
        return tensors, scale_NG.float()[:, index_K] * (q_NK - zero_NG[:, index_K])

    return quantize


def scaled(how: str, dtype: torch.dtype = torch.float8_e4m3fn) -> Quantize:
    """Return what saves a weight with a factor for each `how`: block, channel or tensor."""

    def quantize(weight_NK: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        outputs, width = weight_NK.shape
        size = {"block": BLOCK, "channel": (1, width), "tensor": (outputs, width)}[how]
        scale = _factors(-(-outputs // size[0]), -(-width // size[1])) / 4
        q_NK = (weight_NK * 100).clamp(-100, 100).to(dtype)
        index_N, index_K = torch.arange(outputs) // size[0], torch.arange(width) // size[1]
        known_NK = q_NK.float() * scale[index_N][:, index_K]
        name = "weight_scale_inv" if how == "block" else "weight_scale"
        saved_scale = scale.reshape(()) if how == "tensor" else scale
        return {"weight": q_NK, name: saved_scale, "input_scale": torch.ones(1)}, known_NK

    return quantize


def _compressed(layout: str, **weights: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights}
    return {
        "quant_method": "compressed-tensors", "format": layout, "ignore": ["lm_head"],
        "quantization_status": "compressed", "config_groups": {"group_0": group},
    }  # fmt: skip


def _gptq(**config: Any) -> dict[str, Any]:
    return {"quant_method": "gptq", "bits": 4, "group_size": GROUP, **config}


_FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic"}
_GROUPS = {"type": "int", "strategy": "group", "group_size": GROUP}
METHODS = {
    "fp8-blocks": Method(
        scaled("block"), _FP8 | {"weight_block_size": list(BLOCK)}, torch.bfloat16
    ),
    "fp8-tensor": Method(scaled("tensor"), _FP8, torch.bfloat16),
    "fbgemm": Method(scaled("channel"), {"quant_method": "fbgemm_fp8"}, torch.bfloat16),
    "float-quantized": Method(
        scaled("channel"), _compressed("float-quantized", num_bits=8, type="float"),
        torch.bfloat16,
    ),
    "int-quantized": Method(
        scaled("channel", torch.int8), _compressed("int-quantized", num_bits=8), torch.bfloat16
    ),
    "gptq-4": Method(gptq(4, shuffled=True), _gptq(desc_act=True)),
    "gptq-4-symmetric": Method(gptq(4, symmetric=True), _gptq(sym=True)),
    "gptq-8": Method(gptq(8), _gptq(bits=8)),
    "gptq-v2": Method(gptq(4, version=2), _gptq(checkpoint_format="gptq_v2")),
    "awq": Method(
        awq, {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm"}
    ),
    "packed-4": Method(
        pack_quantized(4), _compressed("pack-quantized", num_bits=4, **_GROUPS), torch.bfloat16
    ),
    "packed-4-zeros": Method(
        pack_quantized(4, symmetric=False), _compressed("pack-quantized", num_bits=4, **_GROUPS),
        torch.bfloat16,
    ),
    "packed-4-shuffled": Method(
        pack_quantized(4, shuffled=True), _compressed("pack-quantized", num_bits=4, **_GROUPS),
        torch.bfloat16,
    ),
    "packed-8": Method(
        pack_quantized(8, by_channel=True), _compressed("pack-quantized", num_bits=8),
        torch.bfloat16,
    ),
}  # fmt: skip


def save_quantized(model: PreTrainedModel, folder: Path, method: Method) -> Path:
    """Save `model` quantized to `folder` as on a hub, and give it the numbers that are there."""
    torch.manual_seed(7)
    model.save_pretrained(str(folder))
    file = folder / "model.safetensors"
    saved: Tensors = {}
    plain: Tensors = {}
    for name, weight in load_file(file).items():
        if weight.dim() == 2 and not name.endswith(_KEPT):
            tensors, known = method.quantize(weight)
            layer = name.removesuffix(".weight")
            saved |= {f"{layer}.{key}": value for key, value in tensors.items()}
            plain[name] = known.to(method.dtype)
        else:
            saved[name] = plain[name] = weight.to(method.dtype)
    save_file({name: weight.contiguous() for name, weight in plain.items()}, file, {"format": "pt"})
    known_model = type(model).from_pretrained(str(folder), dtype=torch.float32)
    model.load_state_dict(known_model.state_dict())
    file.unlink()
    return _write(model, folder, saved, method)


def _write(
    model: PreTrainedModel, folder: Path, saved: Tensors, method: Method
) -> Path:  # fmt: skip
    """Write tensors to two files, with an index and `config.json`."""
    names = sorted(saved)
    shards = {f"model-0000{i + 1}-of-00002.safetensors": names[i::2] for i in range(2)}
    for file, those in shards.items():
        tensors = {name: saved[name].contiguous() for name in those}
        save_file(tensors, folder / file, {"format": "pt"})
    weight_map = {name: file for file, those in shards.items() for name in those}
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    config = model.config.to_dict() | {
        "dtype": str(method.dtype).removeprefix("torch."),
        "quantization_config": method.config,
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder
