"""Models that read a text as a whole: those with an encoder.

What an encoder makes of a token depends on all tokens of its text, and each model has its own way
of telling which those are. So transformers' own forward runs on one text after another, and only
linear layers see all of a batch (`turns.py`).

Legend: T tokens of the batch, L tokens of a text, K width of a hidden state, R rows whose logits
are needed, V tokens of the vocabulary.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn
from transformers import DynamicCache, PreTrainedModel

from loramux_server.kernels.whole_text import WholeText
from loramux_server.lora.virtual import Virtual
from loramux_server.models.recurrent.parts import Rows
from loramux_server.models.step import Step
from loramux_server.models.turns import Turns


class Told(NamedTuple):
    """What a model makes of a batch."""

    hidden: torch.Tensor
    """The last hidden states of an encoder that is alone, [1, T, K]."""
    logits: torch.Tensor
    """[1, R, V]."""


class Reader(Protocol):
    """Runs a model on one text."""

    def rows(self, start: int, end: int, text: WholeText) -> tuple[Rows, ...]:
        """Return which tokens of the batch, of `start` to `end`, each side of the model is given.

        `text` is the text that they are of.
        """

    def read(self, token_1L: torch.Tensor, text: WholeText) -> torch.Tensor:
        """Return what the model makes of the tokens of one request, of which some may be known."""

    def keep(self, num_bytes: int) -> None:
        """Keep for others what is known of the texts of requests, in so much memory."""

    def alone(self, token_1L: torch.Tensor, text: WholeText) -> torch.Tensor:
        """Return what one forward of the model makes of a text: of those tokens that are told of.

        They are [L, K] or [L, V].
        """

    def told(
        self, made: Sequence[torch.Tensor], starts: Sequence[int], sampled: Sequence[int]
    ) -> Told:
        """Return what is told of what was `made` of each request.

        Args:
            made: What `read` gave for each.
            starts: The first token of each in the batch, and the number of all.
            sampled: The tokens whose logits are needed.
        """


class Encoder:
    """Runs an encoder that is alone."""

    def __init__(self, own: PreTrainedModel, *, takes_token_types: bool) -> None:
        self._own = own
        self._takes_token_types = takes_token_types

    def rows(self, start: int, end: int, text: WholeText) -> tuple[Rows, ...]:
        """Return all of them."""
        del text
        return (slice(start, end),)

    def read(self, token_1L: torch.Tensor, text: WholeText) -> torch.Tensor:
        """Return the last hidden states, [1, L, K]."""
        told: dict[str, Any] = {}
        if self._takes_token_types:
            told["token_type_ids"] = torch.zeros_like(token_1L)
            if text.second_from:
                told["token_type_ids"][:, text.second_from - text.start :] = 1
        if text.virtual:
            told["past_key_values"] = cache_of(text.virtual, self._own)
        hidden_1LK: torch.Tensor = self._own(input_ids=token_1L, **told)[0]
        return hidden_1LK

    def keep(self, num_bytes: int) -> None:
        """Keep nothing: each text is read once."""

    def alone(self, token_1L: torch.Tensor, text: WholeText) -> torch.Tensor:
        """Return the same, [L, K]."""
        return self.read(token_1L, text)[0]

    def told(
        self, made: Sequence[torch.Tensor], starts: Sequence[int], sampled: Sequence[int]
    ) -> Told:
        """Return hidden states, and logits of no tokens: an encoder has none."""
        del starts, sampled
        hidden_1TK = torch.cat(list(made), 1)
        return Told(hidden_1TK, hidden_1TK.new_empty(1, 0, 1))


def cache_of(virtual: Virtual, model: PreTrainedModel) -> DynamicCache:
    """Return the keys and values of `virtual` as attention of `model` takes them."""
    cache = DynamicCache()
    for layer, (k_VJD, v_VJE) in enumerate(
        zip(virtual.keys.values(), virtual.values.values(), strict=True)
    ):
        halves = (x.transpose(0, 1)[None].to(model.device, model.dtype) for x in (k_VJD, v_VJE))
        cache.update(*halves, layer)
    return cache


class WholeTexts(nn.Module):
    """Takes a batch of texts as decoders do, and lets the model read one after another."""

    def __init__(self, own: PreTrainedModel, reader: Reader, turns: Turns, step: Step) -> None:
        super().__init__()
        self.own = own
        """The model itself."""
        self._reader = reader
        self._turns = turns
        self._step = step

    @property
    def base_model(self) -> nn.Module:
        """What gives hidden states: this itself."""
        return self

    def keep(self, num_bytes: int) -> None:
        """Keep for others what is known of the texts of requests, in so much memory."""
        self._reader.keep(num_bytes)

    def forward(self, input_ids: torch.Tensor, logits_to_keep: torch.Tensor, **_: Any) -> Told:  # noqa: ANN401
        """Return what the model makes of the running step.

        Args:
            input_ids: Tokens of all requests, one behind the other, [1, T].
            logits_to_keep: The tokens whose logits are needed, [R].
        """
        step = self._step
        assert step.attention is not None
        starts = step.attention.query_start_B.tolist()
        calls, rows = [], []
        for start, end, text in zip(starts, starts[1:], step.texts, strict=False):
            calls.append(partial(self._reader.read, input_ids[:, start:end], text))
            rows.append(self._reader.rows(start, end, text))
        made = self._turns.run(calls, rows)
        return self._reader.told(made, starts, logits_to_keep.tolist())
