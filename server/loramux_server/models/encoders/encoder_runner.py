"""Models that read a whole text at once: those with an encoder.

An encoder's output for a token depends on the whole text, and each model has its own way of marking
where a text begins and ends. So transformers' own forward runs on one text after another, or on
several side by side (`padding.py`), and only linear layers see the whole batch
(`part_scheduler.py`).

Legend: T tokens of the batch, L tokens of a text, K width of a hidden state, R rows whose logits
are needed, V tokens of the vocabulary.
"""

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn
from transformers import DynamicCache, PreTrainedModel

from loramux_server.kernels.encoder_text import EncoderText
from loramux_server.lora.virtual import Virtual
from loramux_server.models.padding import PaddedLayout, group_texts
from loramux_server.models.part_scheduler import PartScheduler
from loramux_server.models.recurrent.parts import Rows
from loramux_server.models.step import Step


class ModelOutput(NamedTuple):
    """The model's output for a batch."""

    hidden: torch.Tensor
    """The last hidden states of an encoder without decoder, [1, T, K]."""
    logits: torch.Tensor
    """[1, R, V]."""


class Reader(Protocol):
    """Runs a model on one text."""

    def rows(self, start: int, end: int, text: EncoderText) -> tuple[Rows, ...]:
        """Return which of the batch's tokens `start` to `end` each side of the model sees.

        `text` is the text that they belong to.
        """

    def read(self, token_1L: torch.Tensor, text: EncoderText) -> torch.Tensor:
        """Return the model's output for the tokens of one request, some of which may be cached."""

    def set_cache_bytes(self, num_bytes: int) -> None:
        """Let requests share encoded sources and prefixes, in a cache of `num_bytes`."""

    def alone(self, token_1L: torch.Tensor, text: EncoderText) -> torch.Tensor:
        """Return the output of one forward of the model on a text.

        It is [L, K], or [tokens, V] for the written tokens of an encoder-decoder.
        """

    def collect_output(
        self, made: Sequence[torch.Tensor], starts: Sequence[int], sampled: Sequence[int]
    ) -> ModelOutput:
        """Return the output for the batch.

        Args:
            made: What `read` returned for each request.
            starts: Index of the first token of each request in the batch, followed by the total.
            sampled: The tokens whose logits are needed.
        """


class Encoder:
    """Runs an encoder without decoder."""

    def __init__(self, model: PreTrainedModel, *, takes_token_types: bool) -> None:
        self._model = model
        self._takes_token_types = takes_token_types
        self._filler: int = getattr(model.config.get_text_config(), "pad_token_id", None) or 0

    def rows(self, start: int, end: int, text: EncoderText) -> tuple[Rows, ...]:
        """Return all of them, on one side."""
        del text
        return (slice(start, end),)

    def read(self, token_1L: torch.Tensor, text: EncoderText) -> torch.Tensor:
        """Return the last hidden states, [1, L, K]."""
        arguments: dict[str, Any] = {}
        if self._takes_token_types:
            arguments["token_type_ids"] = torch.zeros_like(token_1L)
            if text.second_from:
                arguments["token_type_ids"][:, text.second_from - text.start :] = 1
        if text.virtual:
            arguments["past_key_values"] = cache_of(text.virtual, self._model)
        hidden_1LK: torch.Tensor = self._model(input_ids=token_1L, **arguments)[0]
        return hidden_1LK

    def read_padded(
        self, token_T: torch.Tensor, layout: PaddedLayout, texts: Sequence[EncoderText]
    ) -> list[torch.Tensor]:
        """Return what `read` does for each of `texts`, computed side by side.

        Args:
            token_T: Tokens of the batch.
            layout: Where the tokens of the texts are.
            texts: The texts.
        """
        token_BL = layout.pad_tokens(token_T, self._filler)
        arguments: dict[str, Any] = {}
        if not layout.is_full:
            arguments["attention_mask"] = layout.attention_mask()
        if self._takes_token_types:
            arguments["token_type_ids"] = types_BL = torch.zeros_like(token_BL)
            for row_L, text in zip(types_BL, texts, strict=True):
                if text.second_from:
                    row_L[text.second_from - text.start :] = 1
        hidden_BLK = self._model(input_ids=token_BL, **arguments)[0]
        return [
            row_LK[None, :length] for row_LK, length in zip(hidden_BLK, layout.lengths, strict=True)
        ]

    def set_cache_bytes(self, num_bytes: int) -> None:
        """Do nothing: each text is read once."""

    def alone(self, token_1L: torch.Tensor, text: EncoderText) -> torch.Tensor:
        """Return the last hidden states, [L, K]."""
        return self.read(token_1L, text)[0]

    def collect_output(
        self, made: Sequence[torch.Tensor], starts: Sequence[int], sampled: Sequence[int]
    ) -> ModelOutput:
        """Return hidden states, and no logits: an encoder has none."""
        del starts, sampled
        hidden_1TK = torch.cat(list(made), 1)
        return ModelOutput(hidden_1TK, hidden_1TK.new_empty(1, 0, 1))


def cache_of(virtual: Virtual, model: PreTrainedModel) -> DynamicCache:
    """Return the keys and values of `virtual` as a transformers cache for `model`."""
    cache = DynamicCache()
    for layer, (k_VJD, v_VJE) in enumerate(
        zip(virtual.keys.values(), virtual.values.values(), strict=True)
    ):
        halves = (x.transpose(0, 1)[None].to(model.device, model.dtype) for x in (k_VJD, v_VJE))
        cache.update(*halves, layer)
    return cache


class EncoderRunner(nn.Module):
    """Takes a batch as decoders do, and runs the model on its texts."""

    def __init__(
        self, model: PreTrainedModel, reader: Reader, scheduler: PartScheduler, step: Step
    ) -> None:
        super().__init__()
        self.model = model
        """The model itself."""
        self.pads_texts = False
        """Whether texts are read side by side; otherwise one after another."""
        self._reader = reader
        self._scheduler = scheduler
        self._step = step
        # Some models count only tokens other than padding as positions, so virtual tokens must not
        # look like padding.
        padding = getattr(model.config.get_text_config(), "pad_token_id", None)
        self._stand_in = 1 if padding == 0 else 0

    @property
    def is_given_tokens(self) -> bool:
        """Whether each linear layer sees exactly the tokens of the batch."""
        return isinstance(self._reader, Encoder) and not self._scheduler.has_other_rows

    @property
    def base_model(self) -> nn.Module:
        """What returns hidden states: this module itself."""
        return self

    def set_cache_bytes(self, num_bytes: int) -> None:
        """Let requests share encoded sources and prefixes, in a cache of `num_bytes`."""
        self._reader.set_cache_bytes(num_bytes)

    def forward(
        self,
        input_ids: torch.Tensor,
        logits_to_keep: torch.Tensor,
        **_: Any,  # noqa: ANN401
    ) -> ModelOutput:
        """Return the model's output for the running step.

        Args:
            input_ids: Tokens of all requests, concatenated, [1, T].
            logits_to_keep: The tokens whose logits are needed, [R].
        """
        step, reader = self._step, self._reader
        assert step.attention is not None
        if step.embedded:
            input_ids = input_ids.clone()
            for run in step.embedded:
                input_ids[0, run.place_V.to(input_ids.device)] = self._stand_in
        starts = step.attention.query_start_B.tolist()
        spans = list(itertools.pairwise(starts))
        groups = [[number] for number in range(len(spans))]
        if self.pads_texts:
            groups = group_texts([end - start for start, end in spans], self._are_alone(spans))
        calls: list[Callable[[], Any]] = []
        rows: list[tuple[Rows | PaddedLayout, ...]] = []
        for group in groups:
            if len(group) == 1:
                (start, end), text = spans[group[0]], step.texts[group[0]]
                calls.append(partial(reader.read, input_ids[:, start:end], text))
                rows.append(reader.rows(start, end, text))
                continue
            assert isinstance(reader, Encoder)
            layout = PaddedLayout.of([spans[number] for number in group], input_ids.device)
            texts = [step.texts[number] for number in group]
            calls.append(partial(reader.read_padded, input_ids[0], layout, texts))
            rows.append((layout,))
        made: list[Any] = [None] * len(spans)
        found = self._scheduler.run(calls, rows, [group[0] for group in groups])
        for group, of_group in zip(groups, found, strict=True):
            for number, of_text in zip(
                group, [of_group] if len(group) == 1 else of_group, strict=True
            ):
                made[number] = of_text
        return reader.collect_output(made, starts, logits_to_keep.tolist())

    def _are_alone(self, spans: Sequence[tuple[int, int]]) -> list[bool]:
        """Return which texts must be read alone: those with prefixes, edits or virtual tokens."""
        step = self._step
        edited = step.segments.edited() if step.segments else ()
        changed = [
            (start, end) for start, end, edits in edited if edits.modules or edits.outer_modules
        ]
        changed += [(int(run.place_V[0]), int(run.place_V[0]) + 1) for run in step.embedded]
        return [
            text.virtual is not None or any(first < end and start < last for first, last in changed)
            for (start, end), text in zip(spans, step.texts, strict=True)
        ]
