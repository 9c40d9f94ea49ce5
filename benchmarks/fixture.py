"""Files of base models of real shapes with seeded random weights, and of LoRA adapters for them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file

if TYPE_CHECKING:
    from transformers import LlamaConfig

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
"""Data types in which weights are saved."""


@dataclass(frozen=True)
class Shape:
    """The shape of a Llama-like model."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocab: int
    context: int = 2048
    ties_embeddings: bool = True

    @property
    def kv_bytes(self) -> int:
        """Bytes of the keys and values of one token, in float32."""
        return 2 * (self.hidden // self.heads) * self.kv_heads * self.layers * 4

    def config(self) -> "LlamaConfig":
        """Return the config of a model of this shape."""
        from transformers import LlamaConfig  # takes seconds, which kernel benchmarks can save

        return LlamaConfig(
            hidden_size=self.hidden,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            intermediate_size=self.intermediate,
            vocab_size=self.vocab,
            max_position_embeddings=self.context,
            tie_word_embeddings=self.ties_embeddings,
            bos_token_id=1,
            eos_token_id=2,
        )

    def features(self) -> dict[str, tuple[int, int]]:
        """Return (in_features, out_features) of each target."""
        kv = self.hidden // self.heads * self.kv_heads
        return {
            "q_proj": (self.hidden, self.hidden),
            "k_proj": (self.hidden, kv),
            "v_proj": (self.hidden, kv),
            "o_proj": (self.hidden, self.hidden),
            "gate_proj": (self.hidden, self.intermediate),
            "up_proj": (self.hidden, self.intermediate),
            "down_proj": (self.intermediate, self.hidden),
        }


SHAPES = {
    "llama-3.1-8b": Shape(4096, 32, 32, 8, 14336, 128256, context=8192, ties_embeddings=False),
    "llama-3.2-1b": Shape(2048, 16, 32, 8, 8192, 128256, context=8192),
    "smollm2-135m": Shape(576, 30, 9, 3, 1536, 49152),
    "small": Shape(256, 8, 8, 4, 1024, 4096),
    "tiny": Shape(64, 2, 4, 2, 128, 512),
}


def make_base(folder: Path, shape: Shape, seed: int = 0, dtype: str = "float32") -> Path:
    """Write a random model of `shape` to `folder`, without a tokenizer."""
    from transformers import LlamaForCausalLM

    torch.manual_seed(seed)
    LlamaForCausalLM(shape.config()).to(DTYPES[dtype]).save_pretrained(str(folder))
    return folder


def make_adapters(
    folder: Path,
    shape: Shape,
    ranks: Sequence[int],
    count: int,
    *,
    targets: Sequence[str] = TARGETS,
    dtype: str = "float32",
    use_dora: bool = False,
    num_tokens: int = 0,
    num_saved: int = 0,
    device: str = "cpu",
) -> list[str]:
    """Write `count` PEFT folders with distinct weights and ranks in turn; return their names.

    Each has `num_tokens` trained tokens, the last of the vocabulary, and the first `num_saved` have
    embeddings and an output layer. Random numbers are drawn on `device`: on a GPU they differ from
    those on a CPU, and are fast.
    """
    names = []
    for index in range(count):
        name = f"a{index:04d}"
        rank = ranks[index % len(ranks)]
        generator = torch.Generator(device).manual_seed(1000 + index)
        tensors = _weights(shape, rank, targets, DTYPES[dtype], generator, use_dora=use_dora)
        config: dict[str, object] = {"use_dora": use_dora}
        if num_tokens:
            tensors |= _token_rows(shape, num_tokens, DTYPES[dtype], generator)
            config["trainable_token_indices"] = list(range(shape.vocab - num_tokens, shape.vocab))
        if index < num_saved:
            tensors |= _ends(shape, DTYPES[dtype], generator)
            config["modules_to_save"] = ["embed_tokens", "lm_head"]
        _write_adapter(folder / name, tensors, rank, targets, config)
        names.append(name)
    return names


def _weights(
    shape: Shape,
    rank: int,
    targets: Sequence[str],
    dtype: torch.dtype,
    generator: torch.Generator,
    *,
    use_dora: bool,
) -> dict[str, torch.Tensor]:
    features = shape.features()
    random = partial(torch.randn, generator=generator, device=generator.device)
    tensors = {}
    for layer in range(shape.layers):
        for target in targets:
            inputs, outputs = features[target]
            block = "mlp" if target in ("gate_proj", "up_proj", "down_proj") else "self_attn"
            name = f"base_model.model.model.layers.{layer}.{block}.{target}"
            a = random(rank, inputs) / inputs**0.5
            # The update of a weight is about half as large as the weight itself.
            b = random(outputs, rank) * 0.005 * (inputs / rank) ** 0.5
            tensors[f"{name}.lora_A.weight"] = a.to(dtype)
            tensors[f"{name}.lora_B.weight"] = b.to(dtype)
            if use_dora:  # about the norm of rows in a new base
                length = (0.02 + 0.002 * random(outputs)) * inputs**0.5
                tensors[f"{name}.lora_magnitude_vector"] = length.to(dtype)
    return tensors


def _token_rows(
    shape: Shape, count: int, dtype: torch.dtype, generator: torch.Generator
) -> dict[str, torch.Tensor]:
    rows = 0.02 * torch.randn(count, shape.hidden, generator=generator, device=generator.device)
    name = "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"
    return {name: rows.to(dtype)}


def _ends(shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> dict[str, torch.Tensor]:
    size = (shape.vocab, shape.hidden)
    return {
        f"base_model.model.{name}.weight": (
            0.02 * torch.randn(size, generator=generator, device=generator.device)
        ).to(dtype)
        for name in ("model.embed_tokens", "lm_head")
    }


def _write_adapter(
    folder: Path,
    tensors: dict[str, torch.Tensor],
    rank: int,
    targets: Sequence[str],
    config: Mapping[str, object],
) -> None:
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    fields = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": list(targets),
        "bias": "none",
        **config,
    }
    (folder / "adapter_config.json").write_text(json.dumps(fields), encoding="utf-8")
