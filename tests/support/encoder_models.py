"""Tiny random models that read whole texts, and adapters for them, made and saved by PEFT."""

import copy
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AlbertConfig,
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    BartConfig,
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    M2M100Config,
    MarianConfig,
    MBartConfig,
    ModernBertConfig,
    MPNetConfig,
    MT5Config,
    NomicBertConfig,
    PegasusConfig,
    PreTrainedConfig,
    PreTrainedModel,
    RobertaConfig,
    T5Config,
)

from loramux_adapters.head import Task

VOCAB = 260
LENGTH = 48
"""Tokens of the longest text, where there is one."""
_SHAPE = {
    "vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 64, "max_position_embeddings": LENGTH, "pad_token_id": 0,
}  # fmt: skip
_PAIR = {
    "vocab_size": VOCAB, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64, "max_position_embeddings": LENGTH,
}  # fmt: skip
_T5 = {
    "vocab_size": VOCAB, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4,
    "decoder_start_token_id": 0, "relative_attention_num_buckets": 8,
}  # fmt: skip
ENCODERS: dict[str, PreTrainedConfig] = {
    "bert": BertConfig(**_SHAPE),
    "roberta": RobertaConfig(**_SHAPE | {"pad_token_id": 1}, type_vocab_size=1),
    "distilbert": DistilBertConfig(
        vocab_size=VOCAB, dim=32, n_layers=2, n_heads=4, hidden_dim=64,
        max_position_embeddings=LENGTH,
    ),
    "modernbert": ModernBertConfig(
        **_SHAPE, global_attn_every_n_layers=2, local_attention=8, bos_token_id=1, eos_token_id=2,
        cls_token_id=1, sep_token_id=2,
    ),
    "deberta-v2": DebertaV2Config(
        **_SHAPE, relative_attention=True, pos_att_type=["p2c", "c2p"], type_vocab_size=0,
        position_biased_input=False, position_buckets=8, share_att_key=True,
    ),
    "electra": ElectraConfig(**_SHAPE, embedding_size=16),
    "albert": AlbertConfig(**_SHAPE, embedding_size=16),
    "mpnet": MPNetConfig(**_SHAPE | {"pad_token_id": 1}),
    "nomic-bert": NomicBertConfig(**_SHAPE),
}  # fmt: skip
"""Models that are an encoder alone."""
SEQ2SEQ: dict[str, PreTrainedConfig] = {
    "t5": T5Config(**_T5),
    "mt5": MT5Config(**_T5, feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    "bart": BartConfig(**_PAIR),
    "mbart": MBartConfig(**_PAIR),
    "m2m100": M2M100Config(**_PAIR),
    "marian": MarianConfig(**_PAIR, pad_token_id=1, decoder_start_token_id=1),
    "pegasus": PegasusConfig(**_PAIR),
}
"""Models with an encoder and a decoder."""

_WITHOUT_POOLER = ("bert", "albert", "deberta-v2", "nomic-bert")
"""Those that `save_encoder_base` saves without what heads for texts take of them."""


def lost_of(name: str, task: Task) -> list[str]:
    """Return what an adapter for `task` has to bring beside its head, since no base has it."""
    if task is Task.SEQUENCE and name in _WITHOUT_POOLER:
        return ["pooler"]
    # PEFT expects that a head for answers has another name.
    return ["classifier"] if task is Task.SPANS and name == "modernbert" else []


def save_encoder_base(name: str, folder: Path, seed: int = 0, **changes: Any) -> Path:
    """Save the same small random model for the same seed and config changes, as a hub has it."""
    config = copy.deepcopy((ENCODERS | SEQ2SEQ)[name])
    config.update(changes)
    kind = AutoModelForMaskedLM if name in ENCODERS else AutoModelForSeq2SeqLM
    torch.manual_seed(seed)
    model = kind.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for part in model.parameters():  # biases are 0 otherwise, and norms 1
            part.add_(torch.randn_like(part) * 0.1)
    model.save_pretrained(str(folder))
    return folder


def own_model(folder: Path) -> PreTrainedModel:
    """Return what was saved as transformers has it; an encoder has no head."""
    writes = AutoConfig.from_pretrained(str(folder)).is_encoder_decoder
    kind = AutoModelForSeq2SeqLM if writes else AutoModel
    model: PreTrainedModel = kind.from_pretrained(str(folder), dtype=torch.float32)
    return model.eval()
