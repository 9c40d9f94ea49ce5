"""Tokenized examples for text generation, and batches of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import torch
from transformers import PreTrainedTokenizerBase

from loramux_adapters.errors import PackageError
from loramux_adapters.train.examples import Example, Examples, Labelled

IGNORED = -100
"""Label of tokens that do not count for the loss."""

Value = list[int] | list[float] | int | float
Row = dict[str, Value]
"""The model's inputs for one example: per token or for the whole text."""


def rows_of(
    examples: Examples, tokenizer: PreTrainedTokenizerBase, max_tokens: int
) -> list[Row]:  # fmt: skip
    """Return the rows of all examples: prompt to read, completion and end token to learn.

    Prompts are tokenized as a server does it. A text and its label become the prompt `TEXT ->` and
    the completion ` LABEL`.

    Raises:
        PackageError: An example is too long, or the tokenizer has no end token.
    """
    rows: list[Row] = []
    for example in examples.examples:
        if isinstance(example, Labelled):
            example = Example(f"{example.text} ->", f" {example.label}", example.line)
        assert isinstance(example, Example)
        read = tokens_of(tokenizer, example.prompt)
        learn = _to_end(tokenizer, text=example.completion)
        check_length(
            len(read) + len(learn),
            max_tokens,
            examples.where(example),
            "tokens, including the end token",
        )
        rows.append({"input_ids": read + learn, "labels": [IGNORED] * len(read) + learn})
    return rows


def written_rows(
    examples: Examples,
    tokenizer: PreTrainedTokenizerBase,
    max_read: int,
    max_written: int,
    begin: Sequence[int] = (),
) -> list[Row]:
    """Return the rows of all examples for an encoder-decoder.

    Prompts are tokenized as a server does it, completions as text of the target language if the
    tokenizer has two. A text and its label are used without changes.

    Args:
        examples: The examples.
        tokenizer: The tokenizer of the base.
        max_read: Maximum tokens of a prompt.
        max_written: Maximum tokens of a completion, end token included.
        begin: Tokens that completions begin with, after the decoder's start token.

    Raises:
        PackageError: An example is too long, or the tokenizer has no end token.
    """
    rows: list[Row] = []
    for example in examples.examples:
        if isinstance(example, Labelled):
            example = Example(example.text, str(example.label), example.line)
        assert isinstance(example, Example)
        where = examples.where(example)
        read = tokens_of(tokenizer, example.prompt)
        learn = [*begin, *_to_end(tokenizer, text_target=example.completion)]
        check_length(len(read), max_read, where, "input tokens")
        check_length(len(learn), max_written, where, "output tokens, including the end token")
        rows.append({"input_ids": read, "labels": learn})
    return rows


def tokens_of(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Tokenize a prompt as a server does."""
    found: list[int] = tokenizer(text, add_special_tokens=True)["input_ids"]
    return found


def check_length(count: int, room: int, where: str, what: str) -> None:
    """Check that `count` tokens fit.

    Raises:
        PackageError: They do not; the message names `where` they are and `what` they are.
    """
    if count > room:
        raise PackageError(f"{where} has {count} {what}; the limit is {room}", "INVALID_FIELD")


def split(rows: Sequence[Row], num_kept: int, seed: int) -> tuple[list[Row], list[Row]]:
    """Split `rows` at random into those to train on and `num_kept` for evaluation."""
    order = Random(seed).sample(range(len(rows)), len(rows))
    return [rows[i] for i in order[num_kept:]], [rows[i] for i in order[:num_kept]]


@dataclass(frozen=True, slots=True)
class Collator:
    """Makes a batch of rows, padded on the right."""

    pad_id: int

    def __call__(self, rows: list[Row]) -> dict[str, torch.Tensor]:
        """Return the inputs, each [rows] or [rows, longest], with an `attention_mask`."""
        masked = [{**row, "attention_mask": [1] * _length(row["input_ids"])} for row in rows]
        return {name: self._padded(name, [row[name] for row in masked]) for name in masked[0]}

    def _padded(self, name: str, values: Sequence[Value]) -> torch.Tensor:
        fill = {"input_ids": self.pad_id, "labels": IGNORED}.get(name, 0)
        longest = max(map(_length, values))
        return torch.tensor([
            each + [fill] * (longest - len(each)) if isinstance(each, list) else each
            for each in values
        ])  # fmt: skip


def _length(value: Value) -> int:
    return len(value) if isinstance(value, list) else 0


def _to_end(tokenizer: PreTrainedTokenizerBase, **completion: str) -> list[int]:
    if tokenizer.eos_token_id is None:
        raise PackageError("the tokenizer of the base has no eos_token", "ADAPTER_BASE_MISMATCH")
    return [
        *tokenizer(**completion, add_special_tokens=False)["input_ids"],
        tokenizer.eos_token_id,
    ]
