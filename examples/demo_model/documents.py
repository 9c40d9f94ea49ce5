"""Training data: documents for the base, examples for the adapters."""

from collections.abc import Iterator
from itertools import islice
from random import Random

import torch
from transformers import PreTrainedTokenizerFast

from . import tasks
from .tasks import TASKS, Task

BASE_TASKS = tuple(
    TASKS[name]
    for name in (
        "reverse", "upper", "sort", "double", "spell", "mask", "following", "rotate",
        "acronym", "last", "title",
    )
)  # fmt: skip

Document = tuple[str, str]
"""A prompt to read and a text to learn."""

Row = tuple[list[int], list[int]]
"""The tokens of a document: the prompt and the tokens to learn."""

Batch = tuple[torch.Tensor, torch.Tensor]
"""Tokens, and the tokens to learn, where -100 stands for a token that is not to be learned."""


def base_documents(rng: Random) -> Iterator[Document]:
    """Endless documents for the base model, of four kinds.

    A task by its name (``reverse: cat -> tac``); several examples of an unnamed task, one per
    line; a repeated text (``cat -> cat``), so that the base repeats a word by default; and
    sentences.
    """
    while True:
        task = rng.choice(BASE_TASKS)
        kind = rng.random()
        if kind < 0.45:
            yield "", f"{task.name}: {pair(*task.example(rng))}"
        elif kind < 0.7:
            count = rng.randint(2, 5 if task.draw is tasks.word else 3)
            yield "", "\n".join(pair(*task.example(rng)) for _ in range(count))
        elif kind < 0.85:
            text, _ = task.example(rng)
            yield "", pair(text, text)
        else:
            plain = rng.choice((TASKS["last"], TASKS["sentiment"]))
            yield "", f"{plain.example(rng)[0]}."


def adapter_examples(task: Task, rng: Random) -> Iterator[Document]:
    """Endless examples of one task, each a prompt and the answer to learn."""
    while True:
        text, answer = task.example(rng)
        yield f"{text} ->", f" {answer}"


def pair(text: str, answer: str) -> str:
    """A text and its answer as one line."""
    return f"{text} -> {answer}"


def batches(
    documents: Iterator[Document], tokenizer: PreTrainedTokenizerFast, tokens: int, rng: Random
) -> Iterator[Batch]:
    """Endless batches of at most this many tokens, each of documents of similar length."""
    while True:
        pool = list(islice(documents, 1024))
        read = tokenizer([prompt for prompt, _ in pool])["input_ids"]
        learn = tokenizer(
            [f"{text}{tokenizer.eos_token}" for _, text in pool], add_special_tokens=False
        )["input_ids"]
        rows = sorted(zip(read, learn, strict=True), key=lambda row: len(row[0]) + len(row[1]))
        groups = list(_groups(rows, tokens))
        rng.shuffle(groups)
        for group in groups:
            yield _batch(group)


def _groups(rows: list[Row], tokens: int) -> Iterator[list[Row]]:
    """The rows, sorted by length, split into groups that fit a number of tokens when padded."""
    group: list[Row] = []
    for row in rows:
        if group and (len(row[0]) + len(row[1])) * (len(group) + 1) > tokens:
            yield group
            group = []
        group.append(row)
    yield group


def _batch(rows: list[Row]) -> Batch:
    """The rows as tensors, with padding on the right."""
    width = max(len(read) + len(learn) for read, learn in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    labels = torch.full((len(rows), width), -100)
    for place, (read, learn) in enumerate(rows):
        end = len(read) + len(learn)
        ids[place, :end] = torch.tensor(read + learn)
        labels[place, len(read) : end] = torch.tensor(learn)
    return ids, labels
