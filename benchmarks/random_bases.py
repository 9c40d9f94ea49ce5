"""Bases with random weights, of any architecture, and loading them with transformers."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel


def save_base(
    folder: Path,
    config: PreTrainedConfig,
    *,
    kind: Any = AutoModelForCausalLM,  # noqa: ANN401 - the classes have no common one
    dtype: torch.dtype = torch.bfloat16,
) -> Path:
    """Write a random model of `config` to `folder`, without a tokenizer.

    Args:
        folder: Output folder.
        config: Config of the model.
        kind: The Auto class of transformers that creates it.
        dtype: Data type in which it is saved.
    """
    torch.manual_seed(0)
    kind.from_config(config, dtype=dtype).save_pretrained(str(folder))
    return folder


def load_base(
    folder: Path,
    *,
    kind: Any = AutoModelForCausalLM,  # noqa: ANN401 - as above
    dtype: torch.dtype = torch.float32,
) -> PreTrainedModel:
    """Return the model in `folder`; see `save_base`."""
    model: PreTrainedModel = kind.from_pretrained(str(folder), dtype=dtype)
    return model.eval()
