"""Random adapters to embed texts with, made and saved by PEFT, and what PEFT computes with them."""

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModel, PreTrainedModel

from tests.support.adapters import quiet_peft, save_adapter


def bare(base: PreTrainedModel) -> PreTrainedModel:
    """Return what `AutoModel` loads of the causal `base`: all below the layer of logits."""
    model: PreTrainedModel = AutoModel.from_config(base.config, dtype=torch.float32)
    model.load_state_dict(base.base_model.state_dict())
    return model.eval()


def save_embedder(model: PreTrainedModel, folder: Path, *, seed: int, **config: Any) -> PeftModel:
    """Save a random adapter for `model`, bare or causal, and return it as PEFT loads it."""
    save_adapter(model, folder, seed=seed, **config)
    with quiet_peft():
        return PeftModel.from_pretrained(copy.deepcopy(model), str(folder)).eval()


@torch.inference_mode()
def expected_states(model: torch.nn.Module, prompt: Sequence[int]) -> torch.Tensor:
    """Return the last hidden states, [tokens, width], of a bare or a causal model."""
    ids = torch.tensor([list(prompt)])
    states: torch.Tensor = model(
        input_ids=ids, use_cache=False, output_hidden_states=True
    ).hidden_states[-1][0]
    return states


def vector_of(
    states: torch.Tensor,
    pooling: str = "last",
    *,
    normalize: bool = True,
    dimensions: int | None = None,
) -> torch.Tensor:
    """Return the vector of a text whose hidden states are `states`."""
    pooled = {"last": states[-1], "mean": states.mean(0), "first": states[0]}[pooling][:dimensions]
    return torch.nn.functional.normalize(pooled, dim=0) if normalize else pooled


def write_sentence_files(folder: Path, mode: str, *, normalizes: bool) -> None:
    """Write what sentence-transformers saves beside an adapter; `mode` is as its Pooling has it."""
    kinds = ["Transformer", "Pooling", *(["Normalize"] if normalizes else [])]
    modules = [
        {
            "idx": index, "name": f"{index}", "path": f"{index}_{kind}" if index else "",
            "type": f"sentence_transformers.models.{kind}",
        }
        for index, kind in enumerate(kinds)
    ]  # fmt: skip
    switches = {
        "cls": "cls_token", "mean": "mean_tokens", "max": "max_tokens", "lasttoken": "lasttoken",
        "mean_sqrt_len": "mean_sqrt_len_tokens", "weightedmean": "weightedmean_tokens",
    }  # fmt: skip
    pooling = {f"pooling_mode_{name}": mode == each for each, name in switches.items()}
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(
        json.dumps({"word_embedding_dimension": 32, **pooling, "include_prompt": True})
    )
    (folder / "config_sentence_transformers.json").write_text(
        json.dumps({"prompts": {"query": "", "document": ""}, "default_prompt_name": None})
    )
    (folder / "sentence_bert_config.json").write_text(
        json.dumps({"max_seq_length": 512, "do_lower_case": False})
    )
