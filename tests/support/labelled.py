"""A tiny encoder with a tokenizer, and calls that have texts labelled, one after the other."""

import random
import time
from pathlib import Path

import torch
from transformers import BertConfig, BertModel

from loramux import Client
from loramux.errors import LoramuxError
from tests.support.encoder_tokenizers import wordpiece
from tests.support.load import TIMEOUT, Load, Stream

TEXTS = ("Ann left", "the city in May", "a premise", "Bob left it, too. " * 4, "it")
"""Few: a tokenizer keeps the first 10,000 words that it sees, and would only seem to leak."""


def save_reader(folder: Path) -> BertModel:
    """Save a random BERT of 128 positions as a hub has it, and return it."""
    tokenizer = wordpiece()
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=64, max_position_embeddings=128, initializer_range=0.3,
    )  # fmt: skip
    torch.manual_seed(0)
    model = BertModel(config).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(str(folder))
    return model


class Labelled(Load):
    """Has a text labelled so many times in each call, which counts as a stream of the labels."""

    def _stream(self, client: Client, choice: random.Random) -> Stream:
        (text, adapter), count = self._asks(choice), choice.randint(*self._max_tokens)
        assert isinstance(text, str) and adapter is not None
        labels: tuple[int, ...] = ()
        failure = None
        begin = time.monotonic()
        try:
            answer = client.classify([text] * count, adapter=adapter, top_k=1, timeout=TIMEOUT)
            labels = tuple(result.labels[0].index for result in answer.results)
        except LoramuxError as error:
            failure = error
        right = failure is not None or labels == self._answer((text, adapter), count)
        return Stream(begin, time.monotonic(), len(labels), failure, right)
