"""The demo model itself: its tokenizer, its shape, and greedy answers from it."""

from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

PAD, START, END = "<pad>", "<s>", "</s>"
CONTEXT = 512
CHAT_TEMPLATE = Path(__file__).with_name("chat_template.jinja")


def new_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with one token for each of the 256 bytes and three special tokens."""
    letters = _byte_letters()
    vocabulary = {token: index for index, token in enumerate((PAD, START, END, *letters))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A", pair=f"{START} $A $B", special_tokens=[(START, 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=START,
        eos_token=END,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE.read_text(encoding="utf-8"),
    )


def new_model() -> LlamaForCausalLM:
    """A small Llama with random weights; seed torch first to get the same ones again."""
    config = LlamaConfig(
        vocab_size=259,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return LlamaForCausalLM(config)


@torch.inference_mode()
def answers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, prompts: Sequence[str]
) -> list[str]:
    """The completion of each prompt by greedy decoding, up to the end token."""
    model.eval()
    inputs = tokenizer(list(prompts), padding=True, padding_side="left", return_tensors="pt")
    outputs = model.generate(**inputs, do_sample=False, max_new_tokens=64)
    written = outputs[:, inputs["input_ids"].shape[1] :]
    return [tokenizer.decode(row, skip_special_tokens=True) for row in written]


def _byte_letters() -> list[str]:
    """The printable character that stands for each byte, from byte 0 to byte 255."""
    shown = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    stand_in = {byte: chr(byte) for byte in shown}
    stand_in |= {byte: chr(256 + place) for place, byte in enumerate(hidden)}
    return [stand_in[byte] for byte in range(256)]
