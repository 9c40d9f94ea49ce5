"""Tiny seeded base models with attention sinks, which weigh as much in them as other tokens do."""

from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    GptOssConfig,
    GraniteSWAConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from tests.support.models import SHAPE

ROPE = {
    "rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "beta_fast": 32.0,
    "beta_slow": 1.0, "truncate": False, "original_max_position_embeddings": 64,
}  # fmt: skip


def gpt_oss(dtype: torch.dtype = torch.float32, **changes: Any) -> PreTrainedModel:
    """Return a model with windows in turns, and experts that are transposed and have biases."""
    shape = {**SHAPE, "head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2, **changes}
    return _random(GptOssConfig(**shape, sliding_window=8, rope_parameters=ROPE), dtype)


def granite_swa(dtype: torch.dtype = torch.float32, **changes: Any) -> PreTrainedModel:
    """Return a model whose layers are those of Llama but for the sinks, and windows in turns."""
    shape = {**SHAPE, "head_dim": 32, "attention_multiplier": 32**-0.5, **changes}
    return _random(GraniteSWAConfig(**shape, sliding_window=8), dtype)


def _random(config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("sinks", "bias")):
                parameter.normal_(std=1.0 if "sinks" in name else 0.2)
    return model.eval()
