"""Tiny random bases that see images, whole: weights, tokenizer, processor and chat template.

Each is in its folder as one of its kind is on the hub. An image of any size becomes few tokens,
each of which stands for 28 x 28 pixels or so.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForImageTextToText,
    Gemma3Config,
    Idefics3Config,
    InternVLConfig,
    Lfm2VlConfig,
    LlavaConfig,
    Mistral3Config,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen3_5Config,
    Qwen3VLConfig,
)

from tests.support.models import RECURRENT, SHAPE, byte_tokenizer

Ids = Mapping[str, int]
"""Of a kind's own tokens."""


@dataclass(frozen=True)
class Kind:
    """What makes a base of one kind."""

    config: Callable[[Ids, dict[str, Any]], PreTrainedConfig]
    """Given the ids of its tokens, and the shape of what it does with text."""
    image: str
    """What its template writes for an image."""
    tokens: tuple[str, ...]
    """Its own, beside those for bytes."""
    processor: dict[str, Any]
    preprocessor: dict[str, Any]
    named: dict[str, str] = field(default_factory=dict)
    """Those that the tokenizer has names for."""
    opening: str = "'<|im_start|>' + message.role + '\\n'"
    closing: str = "'<|im_end|>\\n'"
    asking: str = "'<|im_start|>assistant\\n'"


CHATML = ("<|im_start|>", "<|im_end|>")
_SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
_TOWER = _SMALL | {"num_hidden_layers": 2, "image_size": 28, "patch_size": 7}
_QWEN_TOWER = {
    "depth": 2, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2,
}  # fmt: skip
_QWEN: dict[str, Any] = {
    "image": "<|vision_start|><|image_pad|><|vision_end|>",
    "tokens": (
        *CHATML, "<|endoftext|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
        "<|video_pad|>",
    ),
}  # fmt: skip


def _qwen_ids(ids: Ids) -> dict[str, int]:
    return {
        "image_token_id": ids["<|image_pad|>"], "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
    }  # fmt: skip


def _rope(shape: Mapping[str, Any]) -> dict[str, Any]:
    pairs = shape.get("head_dim", 8) // 2
    sections = [pairs // 2, pairs // 4, pairs // 4]
    return {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": sections}


def _qwen_tower(shape: Mapping[str, Any], **own: Any) -> dict[str, Any]:
    return _QWEN_TOWER | {"out_hidden_size": shape["hidden_size"]} | own


def _qwen2_5_vl(ids: Ids, shape: dict[str, Any]) -> PreTrainedConfig:
    tower = _qwen_tower(shape, patch_size=14, window_size=56, fullatt_block_indexes=[1])
    text = shape | {"rope_parameters": _rope(shape)}
    return Qwen2_5_VLConfig(text_config=text, vision_config=tower, **_qwen_ids(ids))


def _qwen3_vl(ids: Ids, shape: dict[str, Any]) -> PreTrainedConfig:
    rope = _rope(shape) | {"mrope_interleaved": True}
    tower = _qwen_tower(shape, num_position_embeddings=16, deepstack_visual_indexes=[0, 1])
    text = {"head_dim": 8} | shape | {"rope_parameters": rope}
    return Qwen3VLConfig(text_config=text, vision_config=tower, **_qwen_ids(ids))


def _qwen3_5(ids: Ids, shape: dict[str, Any]) -> PreTrainedConfig:
    text = RECURRENT["qwen3.5"]().to_dict() | shape | {"head_dim": 16}
    text["rope_parameters"] |= {
        "mrope_section": [2, 1, 1], "mrope_interleaved": True, "partial_rotary_factor": 0.5,
    }  # fmt: skip
    tower = _qwen_tower(shape, num_position_embeddings=16)
    return Qwen3_5Config(text_config=text, vision_config=tower, **_qwen_ids(ids))


def _llava(ids: Ids, shape: dict[str, Any]) -> PreTrainedConfig:
    tower = _TOWER | {"patch_size": 14, "model_type": "clip_vision_model"}
    return LlavaConfig(
        text_config=shape | {"model_type": "llama"}, vision_config=tower, image_seq_length=4,
        image_token_index=ids["<image>"],
    )  # fmt: skip


def _mistral3(ids: Ids, shape: dict[str, Any]) -> PreTrainedConfig:
    tower = _TOWER | {"image_size": 112, "patch_size": 14, "head_dim": 8, "model_type": "pixtral"}
    text = shape | {"model_type": "mistral", "head_dim": 8, "sliding_window": None}
    return Mistral3Config(
        text_config=text, vision_config=tower, spatial_merge_size=2, image_token_index=ids["[IMG]"]
    )


def _gemma3(ids: Ids, shape: dict[str, Any]) -> PreTrainedConfig:
    layers = ["sliding_attention", "full_attention"]
    text = shape | {"head_dim": 8, "sliding_window": 32, "layer_types": layers}
    return Gemma3Config(
        text_config=text, vision_config=_TOWER | {"model_type": "siglip_vision_model"},
        mm_tokens_per_image=4, image_token_index=ids["<image_soft_token>"],
        boi_token_index=ids["<start_of_image>"], eoi_token_index=ids["<end_of_image>"],
    )  # fmt: skip


def _internvl(ids: Ids, shape: dict[str, Any]) -> PreTrainedConfig:
    return InternVLConfig(
        text_config=shape | {"model_type": "qwen2"}, vision_config=_TOWER, image_seq_length=4,
        image_token_id=ids["<IMG_CONTEXT>"],
    )  # fmt: skip


def _smolvlm(ids: Ids, shape: dict[str, Any]) -> PreTrainedConfig:
    return Idefics3Config(
        text_config=shape | {"model_type": "llama"}, vision_config=_TOWER, scale_factor=2,
        image_token_id=ids["<image>"],
    )  # fmt: skip


def _lfm2_vl(ids: Ids, shape: dict[str, Any]) -> PreTrainedConfig:
    tower = _SMALL | {
        "num_hidden_layers": 2, "patch_size": 14, "num_patches": 16,
        "model_type": "siglip2_vision_model",
    }  # fmt: skip
    text = RECURRENT["lfm2"]().to_dict() | shape
    return Lfm2VlConfig(
        text_config=text, vision_config=tower, projector_hidden_size=16,
        image_token_id=ids["<image>"],
    )  # fmt: skip


_EVEN = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
_QWEN3: dict[str, Any] = {
    "processor": {"processor_class": "Qwen3VLProcessor"},
    "preprocessor": {
        "image_processor_type": "Qwen2VLImageProcessorFast", "patch_size": 16,
        "temporal_patch_size": 2, "merge_size": 2, **_EVEN,
        "size": {"shortest_edge": 32 * 32, "longest_edge": 16 * 32 * 32},
    },
}  # fmt: skip
_TILES = tuple(f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5))
_SPOTS = tuple(f"<|img_row_{row}_col_{column}|>" for row in range(1, 5) for column in range(1, 5))

KINDS = {
    "qwen2.5-vl": Kind(
        _qwen2_5_vl, **_QWEN,
        processor={"processor_class": "Qwen2_5_VLProcessor"},
        preprocessor={
            "image_processor_type": "Qwen2VLImageProcessor", "patch_size": 14,
            "temporal_patch_size": 2, "merge_size": 2, "min_pixels": 28 * 28,
            "max_pixels": 16 * 28 * 28,
        },
    ),
    "qwen3-vl": Kind(_qwen3_vl, **_QWEN, **_QWEN3),
    "qwen3.5": Kind(_qwen3_5, **_QWEN, **_QWEN3),
    "llava": Kind(
        _llava, image="<image>\\n", tokens=("<image>",),
        opening="message.role | upper + ': '", closing="' '", asking="'ASSISTANT:'",
        processor={
            "processor_class": "LlavaProcessor", "patch_size": 14, "image_token": "<image>",
            "num_additional_image_tokens": 1, "vision_feature_select_strategy": "default",
        },
        preprocessor={
            "image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 28},
            "crop_size": {"height": 28, "width": 28},
        },
    ),
    "mistral3": Kind(
        _mistral3, image="[IMG]", tokens=("[INST]", "[/INST]", "[IMG]", "[IMG_BREAK]", "[IMG_END]"),
        opening="'[INST]' if message.role == 'user' else ''",
        closing="'[/INST]' if message.role == 'user' else eos_token", asking="''",
        processor={
            "processor_class": "PixtralProcessor", "patch_size": 14, "spatial_merge_size": 2,
            "image_token": "[IMG]", "image_break_token": "[IMG_BREAK]",
            "image_end_token": "[IMG_END]",
        },
        preprocessor={
            "image_processor_type": "PixtralImageProcessor", "size": {"longest_edge": 112},
            "patch_size": {"height": 14, "width": 14},
        },
    ),
    "gemma3": Kind(
        _gemma3, image="<start_of_image>", tokens=("<start_of_turn>", "<end_of_turn>"),
        named={
            "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>",
            "image_token": "<image_soft_token>",
        },
        opening="'<start_of_turn>' + message.role + '\\n'", closing="'<end_of_turn>\\n'",
        asking="'<start_of_turn>model\\n'",
        processor={"processor_class": "Gemma3Processor", "image_seq_length": 4},
        preprocessor={
            "image_processor_type": "Gemma3ImageProcessor", "size": {"height": 28, "width": 28},
            "do_pan_and_scan": None, **_EVEN,
        },
    ),
    "internvl": Kind(
        _internvl, image="<IMG_CONTEXT>\\n", tokens=CHATML,
        named={
            "start_image_token": "<img>", "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>", "video_token": "<video>",
        },
        processor={"processor_class": "InternVLProcessor", "image_seq_length": 4},
        preprocessor={
            "image_processor_type": "GotOcr2ImageProcessorFast", "crop_to_patches": False,
            "size": {"height": 28, "width": 28}, "min_patches": 1, "max_patches": 4,
        },
    ),
    "smolvlm": Kind(
        _smolvlm, image="<image>",
        tokens=(
            "<|im_start|>", "<end_of_utterance>", "<fake_token_around_image>", "<image>",
            "<global-img>", *_TILES,
        ),
        opening="'<|im_start|>' + message.role | capitalize + ':'",
        closing="'<end_of_utterance>\\n'", asking="'Assistant:'",
        processor={"processor_class": "Idefics3Processor", "image_seq_len": 4},
        preprocessor={
            "image_processor_type": "Idefics3ImageProcessor", "size": {"longest_edge": 56},
            "max_image_size": {"longest_edge": 28}, **_EVEN,
        },
    ),
    "lfm2-vl": Kind(
        _lfm2_vl, image="<image>",
        tokens=(
            *CHATML, "<image>", "<|image_start|>", "<|image_end|>", "<|img_thumbnail|>", *_SPOTS,
        ),
        processor={"processor_class": "Lfm2VlProcessor"},
        preprocessor={
            "image_processor_type": "Lfm2VlImageProcessorFast", "encoder_patch_size": 14,
            "min_image_tokens": 4, "max_image_tokens": 16, "tile_size": 56, "max_tiles": 4,
            "max_num_patches": 64, **_EVEN,
        },
    ),
}  # fmt: skip
"""Of lfm2-vl transformers has no processor that does without torchvision."""


def save_vision_base(kind: str, folder: Path, **changes: Any) -> PreTrainedModel:
    """Save the same random base of `kind` each time, and return it.

    Args:
        kind: One of KINDS.
        folder: Where to.
        changes: Of the shape of what it does with text.
    """
    about = KINDS[kind]
    tokenizer = _tokenizer(about)
    words = (*about.tokens, *about.named.values())
    ids = {word: tokenizer.convert_tokens_to_ids(word) for word in words}
    shape = SHAPE | {"vocab_size": len(tokenizer), "max_position_embeddings": 512} | changes
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForImageTextToText.from_config(
        about.config(ids, shape), dtype=torch.float32
    )
    for name, parameter in model.named_parameters():
        # As they are made, what an image becomes is too small to matter.
        if "language_model" not in name and parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))
    for name, content in (
        ("processor_config.json", about.processor),
        ("preprocessor_config.json", about.preprocessor | about.processor),
    ):
        (folder / name).write_text(json.dumps(content))
    (folder / "chat_template.jinja").write_text(_template(about))
    return model.eval()


def _tokenizer(kind: Kind) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=byte_tokenizer().backend_tokenizer,
        pad_token="<pad>", bos_token="<s>", eos_token="</s>",
        extra_special_tokens=list(kind.tokens), model_specific_special_tokens=kind.named,
    )  # fmt: skip


def _template(kind: Kind) -> str:
    return f"""\
{{{{- bos_token }}}}
{{%- for message in messages %}}
    {{{{- {kind.opening} }}}}
    {{%- if message.content is string %}}
        {{{{- message.content }}}}
    {{%- else %}}
        {{%- for part in message.content %}}
            {{{{- '{kind.image}' if part.type == 'image' else part.text }}}}
        {{%- endfor %}}
    {{%- endif %}}
    {{{{- {kind.closing} }}}}
{{%- endfor %}}
{{%- if add_generation_prompt %}}{{{{ {kind.asking} }}}}{{% endif %}}"""
