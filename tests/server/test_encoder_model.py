"""Models with an encoder: which are served, and how long their texts may be."""

from pathlib import Path

import pytest
from transformers import FSMTConfig, FSMTForConditionalGeneration

from loramux_server.models.loading import load_base_model
from loramux_server.models.servable import UnservableModelError
from tests.support.encoder_models import save_encoder_base


def test_texts_are_shorter_where_many_heads_look_at_them(tmp_path: Path) -> None:
    base = load_base_model(str(save_encoder_base("t5", tmp_path, num_heads=64, d_kv=1)))
    assert (base.source_length, base.context_length) == (2048, 4096)


def test_a_model_that_makes_logits_with_an_embedding_is_refused(tmp_path: Path) -> None:
    config = FSMTConfig(
        langs=["en", "de"], src_vocab_size=60, tgt_vocab_size=60, d_model=16, encoder_layers=1,
        decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=16,
        decoder_ffn_dim=16, max_position_embeddings=20,
    )  # fmt: skip
    FSMTForConditionalGeneration(config).save_pretrained(str(tmp_path))
    with pytest.raises(UnservableModelError, match="computes logits with Embedding; expected"):
        load_base_model(str(tmp_path))
