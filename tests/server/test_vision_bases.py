"""Bases that see images as well, of which the part for text is served."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    Gemma3Config,
    Lfm2VlConfig,
    Mistral3Config,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen3_5Config,
)

from loramux_adapters.base_names import named_for
from loramux_adapters.contents import Contents
from loramux_adapters.lora import LoraModule
from loramux_server.models.base_model import BaseModel
from loramux_server.models.loading import load_base_model
from tests.support.adapters import expected, pack_source, save_adapter, with_adapter
from tests.support.engine import Harness
from tests.support.models import RECURRENT, SHAPE, VOCAB, byte_tokenizer

VISION = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "image_size": 16, "patch_size": 8,
}  # fmt: skip
IMAGE = {"image_token_id": 90, "video_token_id": 91, "vision_start_token_id": 92,
         "vision_end_token_id": 93}  # fmt: skip
ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
QWEN_VISION = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2,
               "out_hidden_size": 32}  # fmt: skip


def qwen3_5() -> PreTrainedConfig:
    text = RECURRENT["qwen3.5"]().to_dict()
    text["rope_parameters"]["mrope_section"] = [1, 0, 0]
    vision = QWEN_VISION | {"num_position_embeddings": 16}
    return Qwen3_5Config(text_config=text, vision_config=vision, **IMAGE)


CONFIGS = {
    "gemma3": lambda: Gemma3Config(
        text_config=SHAPE | {"head_dim": 8}, vision_config=VISION, mm_tokens_per_image=4
    ),
    "mistral3": lambda: Mistral3Config(
        text_config=SHAPE | {"model_type": "mistral", "head_dim": 8},
        vision_config=VISION | {"model_type": "pixtral"}, image_token_index=90,
    ),
    "qwen2.5-vl": lambda: Qwen2_5_VLConfig(
        text_config=SHAPE | {"rope_parameters": ROPE}, vision_config=QWEN_VISION, **IMAGE
    ),
    "lfm2-vl": lambda: Lfm2VlConfig(
        text_config=RECURRENT["lfm2"]().to_dict(), image_token_id=90,
        vision_config=VISION | {"model_type": "siglip2_vision_model", "num_patches": 4},
    ),
    "qwen3.5": qwen3_5,
}  # fmt: skip
PROMPT = [5, 6, 7, 8, 9, 10, 11]


def saved(kind: str, folder: Path) -> PreTrainedModel:
    """Return a random model that sees images, which is saved in `folder`."""
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForImageTextToText.from_config(
        CONFIGS[kind](), dtype=torch.float32
    )
    model.save_pretrained(str(folder))
    byte_tokenizer().save_pretrained(str(folder))
    return model.eval()


def check(base: BaseModel, model: PreTrainedModel, adapter: Path) -> None:
    """Hold the base and an adapter that PEFT saved of `model` against PEFT."""
    harness = Harness(base)
    source = pack_source(adapter, adapter.with_suffix(".pkg"))
    asked = [harness.submit(PROMPT, each, num_logprobs=VOCAB) for each in (None, source)]
    harness.run()
    for request_id, alone in zip(asked, (model, with_adapter(model, adapter)), strict=True):
        wanted = expected(alone, PROMPT, 8)
        assert harness.output(request_id) == wanted.tokens
        reported = harness.tokens[request_id][-1].logprobs
        assert reported is not None
        ours = torch.tensor([logprob for _, logprob in sorted(reported.top)])
        torch.testing.assert_close(ours, wanted.logprobs[-1], rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", CONFIGS)
def test_text_is_served_with_adapters_of_the_whole_model(kind: str, tmp_path: Path) -> None:
    model = saved(kind, tmp_path / "base")
    layers = ["q_proj", "v_proj", "down_proj", "in_proj_qkv", "w2"]
    targets = [n for n in layers if any(f".{n}." in f"{name}." for name, _ in named_layers(model))]
    adapter = save_adapter(
        copy.deepcopy(model),
        tmp_path / "a",
        seed=1,
        r=4,
        target_modules=[
            name for name, _ in named_layers(model) if name.rpartition(".")[2] in targets
        ],
    )
    check(load_base_model(str(tmp_path / "base"), device="cpu"), model, adapter)


def named_layers(model: PreTrainedModel) -> list[tuple[str, torch.nn.Module]]:
    """Return the linear layers of the part for text."""
    return [
        (name, part)
        for name, part in model.named_modules()
        if isinstance(part, torch.nn.Linear) and ".language_model." in name
    ]


def test_vision_modules_take_no_memory(tmp_path: Path) -> None:
    saved("mistral3", tmp_path / "base")
    base = load_base_model(str(tmp_path / "base"), device="cpu")
    tower = base.module.get_submodule("model.vision_tower")
    assert sum(parameter.numel() for parameter in tower.parameters()) == 0
    assert base.stack is not None  # the part for text is that of Mistral


def test_an_adapter_of_text_alone_serves_on_either(tmp_path: Path) -> None:
    saved("qwen3.5", tmp_path / "base")
    alone = AutoModelForCausalLM.from_pretrained(str(tmp_path / "base"), dtype=torch.float32)
    adapter = save_adapter(
        alone.eval(), tmp_path / "a", seed=1, r=4, target_modules=["in_proj_qkv", "q_proj"]
    )
    check(load_base_model(str(tmp_path / "base"), device="cpu"), alone, adapter)


def module(name: str) -> LoraModule:
    weights: Any = None
    return LoraModule(name, 1.0, weights, weights)


@pytest.mark.parametrize(
    ("trained", "served"),
    [
        ("model.language_model.layers.1.q_proj", "model.layers.0.q_proj"),
        ("model.layers.1.q_proj", "model.language_model.layers.0.q_proj"),
        ("language_model.model.layers.1.q_proj", "model.language_model.layers.0.q_proj"),
        ("model.language_model.layers.1.q_proj", "language_model.model.layers.0.q_proj"),
        ("language_model.model.layers.1.q_proj", "model.layers.0.q_proj"),
        ("model.layers.1.q_proj", "model.text_model.layers.0.q_proj"),
    ],
)
def test_layers_for_text_are_found_under_the_names_of_any_version(
    trained: str, served: str
) -> None:
    contents = Contents(modules=[module(trained)])
    (found,) = named_for(contents, [served]).modules
    assert found.module == served.replace(".0.", ".1.")


@pytest.mark.parametrize(
    ("trained", "layers", "served"),
    [
        ("lm_head", "model.layers.0.q_proj", "language_model.lm_head"),
        ("language_model.lm_head", "language_model.model.layers.0.q_proj", "lm_head"),
    ],
)
def test_what_makes_logits_is_found_beside_them(trained: str, layers: str, served: str) -> None:
    there = "language_model.model.layers.0.q_proj" if layers.startswith("model") else (
        "model.language_model.layers.0.q_proj"
    )  # fmt: skip
    contents = Contents(modules=[module(layers), module(trained)])
    assert named_for(contents, [there]).modules[1].module == served


def test_vision_modules_keep_their_names() -> None:
    contents = Contents(
        modules=[
            module("model.visual.blocks.0.qkv"),
            module("model.language_model.layers.0.q_proj"),
        ]
    )
    found = named_for(contents, ["model.layers.0.q_proj"]).modules
    assert [each.module for each in found] == ["model.visual.blocks.0.qkv", "model.layers.0.q_proj"]
