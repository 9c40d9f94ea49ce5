"""Tiny seeded base models of many architectures, as transformers makes them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoModelForCausalLM,
    FalconH1Config,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    GraniteMoeHybridConfig,
    JambaConfig,
    KimiLinearConfig,
    Lfm2Config,
    LlamaConfig,
    Mamba2Config,
    MistralConfig,
    NemotronHConfig,
    OPTConfig,
    Phi3Config,
    PhiConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3_5TextConfig,
    Qwen3Config,
    Qwen3MoeConfig,
    Qwen3NextConfig,
)

# The models are tiny, and more threads than free cores wait for each other.
torch.set_num_threads(1)

VOCAB = 97

SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_OLD = {"vocab_size": VOCAB, "initializer_range": 0.2, "bos_token_id": 1, "eos_token_id": 2}

CONFIGS: dict[str, Callable[[], PreTrainedConfig]] = {
    "llama": lambda: LlamaConfig(**SHAPE),
    "llama-bias": lambda: LlamaConfig(**SHAPE, attention_bias=True, mlp_bias=True),
    "qwen2": lambda: Qwen2Config(**SHAPE),
    "qwen3": lambda: Qwen3Config(**SHAPE, head_dim=16),
    "qwen3-moe": lambda: Qwen3MoeConfig(
        **SHAPE, head_dim=16, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24
    ),
    "mistral": lambda: MistralConfig(**SHAPE, sliding_window=8),
    "gemma": lambda: GemmaConfig(**SHAPE, head_dim=16),
    "gemma2": lambda: Gemma2Config(**SHAPE, head_dim=16, sliding_window=8),
    "gemma3": lambda: Gemma3TextConfig(**SHAPE, head_dim=16, sliding_window=8),
    "phi": lambda: PhiConfig(**SHAPE),
    "phi3": lambda: Phi3Config(**SHAPE),
    "gpt2": lambda: GPT2Config(
        **_OLD, n_embd=32, n_layer=2, n_head=4, n_positions=256
    ),
    "gpt-neox": lambda: GPTNeoXConfig(
        **_OLD, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=256,
    ),
    "opt": lambda: OPTConfig(
        vocab_size=VOCAB, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4,
        word_embed_proj_dim=32, max_position_embeddings=256, init_std=0.2, bos_token_id=1,
        eos_token_id=2,
    ),
}  # fmt: skip

_LINEAR = {
    "head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    "linear_key_head_dim": 8, "linear_value_head_dim": 64,
    "layer_types": ["linear_attention", "full_attention"],
}  # fmt: skip
_MAMBA = {
    "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_n_groups": 1,
    "mamba_chunk_size": 8,
}  # fmt: skip
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}

RECURRENT: dict[str, Callable[[], PreTrainedConfig]] = {
    "qwen3.5": lambda: Qwen3_5TextConfig(**SHAPE, **_LINEAR),
    "qwen3-next": lambda: Qwen3NextConfig(
        **SHAPE, **_LINEAR, **_EXPERTS, shared_expert_intermediate_size=24
    ),
    "lfm2": lambda: Lfm2Config(
        **SHAPE, layer_types=["conv", "full_attention"], block_auto_adjust_ff_dim=False
    ),
    "granite-hybrid": lambda: GraniteMoeHybridConfig(
        **SHAPE, **_MAMBA, layer_types=["mamba", "attention"], num_local_experts=0,
        shared_intermediate_size=48,
    ),
    "falcon-h1": lambda: FalconH1Config(**SHAPE | _MAMBA, mamba_d_ssm=64),
    "nemotron-h": lambda: NemotronHConfig(
        **SHAPE | {"num_hidden_layers": 3, "initializer_range": 0.1},
        layers_block_type=["mamba", "attention", "mlp"], mamba_num_heads=4, mamba_head_dim=8,
        ssm_state_size=16, n_groups=1, chunk_size=8, head_dim=8,
    ),
    "jamba": lambda: JambaConfig(
        **SHAPE, attn_layer_period=2, attn_layer_offset=1, expert_layer_period=2,
        expert_layer_offset=1, num_experts=2, num_experts_per_tok=1, mamba_d_state=8,
        mamba_dt_rank=4,
    ),
    "mamba2": lambda: Mamba2Config(
        **_OLD, hidden_size=32, num_hidden_layers=2, state_size=16, num_heads=4, head_dim=16,
        n_groups=1, chunk_size=8,
    ),
    "kimi-linear": lambda: KimiLinearConfig(
        **SHAPE | {"num_key_value_heads": 4}, layer_types=["linear_attention", "full_attention"],
        mlp_layer_types=["dense", "sparse"], num_local_experts=4, num_experts_per_tok=2,
        moe_intermediate_size=24, linear_num_heads=4, linear_head_dim=8, kv_lora_rank=16,
        qk_nope_head_dim=8, qk_rope_head_dim=8, v_head_dim=8,
    ),
}  # fmt: skip
"""Models some of whose layers are recurrent, or all."""


def tiny_model(architecture: str, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """Return the same small random model of `architecture` for the same seed and config changes."""
    config = (CONFIGS | RECURRENT)[architecture]()
    config.update(changes)
    torch.manual_seed(seed)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return model.eval()


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with a token for each byte, and `<pad>`, `<s>` and `</s>` before them."""
    specials = {"<pad>": 0, "<s>": 1, "</s>": 2}
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = specials | {byte: len(specials) + i for i, byte in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(specials))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


def bytes_of(text: str) -> list[int]:
    """Return the tokens of `text` by `byte_tokenizer`, one for each of its bytes."""
    tokens: list[int] = byte_tokenizer()(text, add_special_tokens=False).input_ids
    return tokens


def save_model(
    folder: Path, architecture: str = "llama", *, tokenizer: bool = True, **changes: Any
) -> Path:
    """Save a tiny model to `folder` as a hub model is: weights, configs and tokenizer."""
    tiny_model(architecture, vocab_size=259, **changes).save_pretrained(str(folder))
    if tokenizer:
        byte_tokenizer().save_pretrained(str(folder))
    return folder
