"""Examples as tokens, and batches of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Protocol

import torch

from loramux_adapters.errors import PackageError
from loramux_adapters.train.examples import Example, Examples

IGNORED = -100
"""The label of a token that is read and not learned."""

Row = dict[str, list[int]]
"""`input_ids` and `labels` of one example."""


class Tokenizer(Protocol):
    """What is needed of a tokenizer of transformers."""

    eos_token_id: int | None

    def __call__(self, text: str, *, add_special_tokens: bool) -> dict[str, list[int]]:
        """Return `input_ids` of `text`."""


def rows_of(examples: Examples, tokenizer: Tokenizer, max_tokens: int) -> list[Row]:
    """Return each example as tokens: the prompt to read, completion and end token to learn.

    The prompt becomes the tokens that a server makes of it.

    Raises:
        PackageError: An example is too long, or the tokenizer has no end token.
    """
    if tokenizer.eos_token_id is None:
        raise PackageError("the tokenizer of the base has no eos_token", "ADAPTER_BASE_MISMATCH")
    return [
        _row(example, tokenizer, max_tokens, f"{examples.path}, line {example.line}")
        for example in examples.examples
    ]


def split(rows: Sequence[Row], num_kept: int, seed: int) -> tuple[list[Row], list[Row]]:
    """Return the rows to train on, and those kept for evaluation, drawn by `seed`."""
    order = Random(seed).sample(range(len(rows)), len(rows))
    return [rows[i] for i in order[num_kept:]], [rows[i] for i in order[:num_kept]]


@dataclass(frozen=True, slots=True)
class Collator:
    """Makes one batch of rows, with padding on the right."""

    pad_id: int

    def __call__(self, rows: list[Row]) -> dict[str, torch.Tensor]:
        """Return `input_ids`, `labels` and `attention_mask`, each [rows, longest]."""
        longest = max(len(row["input_ids"]) for row in rows)

        def padded(values: list[list[int]], pad: int) -> torch.Tensor:
            return torch.tensor([row + [pad] * (longest - len(row)) for row in values])

        return {
            "input_ids": padded([row["input_ids"] for row in rows], self.pad_id),
            "labels": padded([row["labels"] for row in rows], IGNORED),
            "attention_mask": padded([[1] * len(row["input_ids"]) for row in rows], 0),
        }


def _row(example: Example, tokenizer: Tokenizer, max_tokens: int, where: str) -> Row:
    read = tokenizer(example.prompt, add_special_tokens=True)["input_ids"]
    assert tokenizer.eos_token_id is not None
    learn = [
        *tokenizer(example.completion, add_special_tokens=False)["input_ids"],
        tokenizer.eos_token_id,
    ]
    if len(read) + len(learn) > max_tokens:
        raise PackageError(
            f"{where} has {len(read) + len(learn)} tokens with the end token; there is room "
            f"for {max_tokens}: shorten it",
            "INVALID_FIELD",
        )
    return {"input_ids": read + learn, "labels": [IGNORED] * len(read) + learn}
