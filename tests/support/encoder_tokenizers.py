"""Tiny tokenizers of encoders, one of each kind, as transformers makes them of a vocabulary."""

import json
from collections.abc import Callable

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import (
    BertTokenizer,
    PreTrainedTokenizerFast,
    RobertaTokenizer,
    XLMRobertaTokenizer,
)

_TEXTS = ["Ann left the naïve city 🙂 in May. Bob left it, too.", "a premise and its hypothesis"]


def wordpiece() -> PreTrainedTokenizerFast:
    """Return one as BERT has it, which tells the tokens of the second text apart."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator(
        _TEXTS, trainers.WordPieceTrainer(vocab_size=90, special_tokens=special)
    )
    return BertTokenizer(vocab=tokenizer.get_vocab())


def byte_level() -> PreTrainedTokenizerFast:
    """Return one as RoBERTa has it."""
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        _TEXTS,
        trainers.BpeTrainer(vocab_size=280, special_tokens=special, initial_alphabet=alphabet),
    )
    model = json.loads(tokenizer.to_str())["model"]
    return RobertaTokenizer(vocab=model["vocab"], merges=list(map(tuple, model["merges"])))


def unigram() -> PreTrainedTokenizerFast:
    """Return one as XLM-R has it."""
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.train_from_iterator(
        _TEXTS,
        trainers.UnigramTrainer(vocab_size=60, special_tokens=special, unk_token="<unk>"),
    )
    model = json.loads(tokenizer.to_str())["model"]
    return XLMRobertaTokenizer(vocab=list(map(tuple, model["vocab"])))


TOKENIZERS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "wordpiece": wordpiece,
    "byte-level": byte_level,
    "unigram": unigram,
}
