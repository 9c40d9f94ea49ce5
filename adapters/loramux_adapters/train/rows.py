"""Examples as tokens, and batches of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import torch
from transformers import PreTrainedTokenizerBase

from loramux_adapters.errors import PackageError
from loramux_adapters.train.examples import Example, Examples, Labelled

IGNORED = -100
"""The label of a token that is read and not learned."""

Value = list[int] | list[float] | int | float
Row = dict[str, Value]
"""What a model is given of one example: a number for each of its tokens, or of the whole."""


def rows_of(
    examples: Examples, tokenizer: PreTrainedTokenizerBase, max_tokens: int
) -> list[Row]:  # fmt: skip
    """Return each example as tokens: the prompt to read, completion and end token to learn.

    The prompt becomes the tokens that a server makes of it. Text and label are the prompt
    `TEXT ->` and the completion ` LABEL`.

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
            len(read) + len(learn), max_tokens, examples.where(example), "tokens with the end token"
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
    """Return each example as tokens of two texts: the prompt to read, the completion to write.

    The prompt becomes the tokens that a server makes of it, the completion those that the
    tokenizer has for the other language, if it knows two. Of text and label, they are these.

    Args:
        examples: What to make rows of.
        tokenizer: That of the base.
        max_read: Tokens that a prompt may have.
        max_written: Tokens that what is written may have, the end token included.
        begin: Tokens that what is written begins with, behind the decoder's own first.

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
        check_length(len(read), max_read, where, "tokens to read")
        check_length(len(learn), max_written, where, "tokens to write with the end token")
        rows.append({"input_ids": read, "labels": learn})
    return rows


def tokens_of(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return what a server makes of a prompt."""
    found: list[int] = tokenizer(text, add_special_tokens=True)["input_ids"]
    return found


def check_length(count: int, room: int, where: str, what: str) -> None:
    """Demand that `count` tokens have room.

    Raises:
        PackageError: They have not; the message names `where` they are and `what`.
    """
    if count > room:
        raise PackageError(
            f"{where} has {count} {what}; there is room for {room}: shorten it", "INVALID_FIELD"
        )


def split(rows: Sequence[Row], num_kept: int, seed: int) -> tuple[list[Row], list[Row]]:
    """Return the rows to train on, and those kept for evaluation, drawn by `seed`."""
    order = Random(seed).sample(range(len(rows)), len(rows))
    return [rows[i] for i in order[num_kept:]], [rows[i] for i in order[:num_kept]]


@dataclass(frozen=True, slots=True)
class Collator:
    """Makes one batch of rows, with padding on the right."""

    pad_id: int

    def __call__(self, rows: list[Row]) -> dict[str, torch.Tensor]:
        """Return what `rows` have, each [rows] or [rows, longest], and an `attention_mask`."""
        told = [{**row, "attention_mask": [1] * _length(row["input_ids"])} for row in rows]
        return {name: self._together(name, [row[name] for row in told]) for name in told[0]}

    def _together(self, name: str, values: Sequence[Value]) -> torch.Tensor:
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
