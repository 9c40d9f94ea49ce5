"""Encoder-decoders: the encoder reads one text, and the decoder writes another.

Legend: L tokens of a request, N those of them that are written, R rows whose logits are needed, V
tokens of the vocabulary.
"""

import bisect
from collections.abc import Sequence

import torch
from transformers import DynamicCache, EncoderDecoderCache, PreTrainedModel

from loramux_server.kernels.encoder_text import EncoderText
from loramux_server.models.encoders.encoder_runner import ModelOutput, cache_of
from loramux_server.models.encoders.prefix_cache import (
    Seq2SeqPrefixCache,
    copied,
    has_sliding_window,
    shortened,
)
from loramux_server.models.recurrent.parts import Rows

SOURCE, WRITTEN = 0, 1
"""The two sides of such a model."""


class Seq2Seq:
    """Runs a model with an encoder and a decoder."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._prefix_cache = Seq2SeqPrefixCache()

    def rows(self, start: int, end: int, text: EncoderText) -> tuple[Rows, ...]:
        """Return the tokens of the source, and those of the written text."""
        border = start + max(0, text.num_source - text.start)
        return slice(start, border), slice(border, end)

    def read(self, token_1L: torch.Tensor, text: EncoderText) -> torch.Tensor:
        """Return the logits of the written tokens that were not cached, [1, N, V]."""
        state, num_source = text.state, max(0, text.num_source - text.start)
        source, written = token_1L[:, :num_source], token_1L[:, num_source:]
        if num_source:
            self._begin(source, written, text)
            if text.virtual and state.cache is None:
                virtual = cache_of(text.virtual, self._model)
                state.cache = EncoderDecoderCache(virtual, DynamicCache())
            written = written[:, state.num_written :]
        elif state.num_written > text.start - text.num_source:  # the last token is computed again
            before = state.before
            state.cache = shortened(state.cache) if before is None else before
            state.num_written -= 1
        if state.encoded is None:
            state.encoded = self._model.get_encoder()(input_ids=source)
        state.before = (
            state.cache if has_sliding_window(state.cache) and written.shape[1] == 1 else None
        )
        made = self._model(
            encoder_outputs=state.encoded,
            decoder_input_ids=written,
            past_key_values=copied(state.cache),
            use_cache=True,
        )
        state.cache = made.past_key_values
        state.num_written += written.shape[1]
        if num_source and text.owner:
            self._prefix_cache.put(
                text.owner, *_tokens(source, token_1L[:, num_source:]), state=state
            )
        logits_1NV: torch.Tensor = made.logits
        return logits_1NV

    def set_cache_bytes(self, num_bytes: int) -> None:
        """Let requests share encoded sources and prefixes, in a cache of `num_bytes`."""
        self._prefix_cache.max_bytes = num_bytes

    def alone(self, token_1L: torch.Tensor, text: EncoderText) -> torch.Tensor:
        """Return the logits of all written tokens, [N, V], computed at once."""
        logits_1NV: torch.Tensor = self._model(
            input_ids=token_1L[:, : text.num_source],
            decoder_input_ids=token_1L[:, text.num_source :],
            use_cache=False,
        ).logits
        return logits_1NV[0]

    def collect_output(
        self, made: Sequence[torch.Tensor], starts: Sequence[int], sampled: Sequence[int]
    ) -> ModelOutput:
        """Return the logits of the requested rows."""
        ends = starts[1:]
        rows = []
        for token in sampled:
            number = bisect.bisect_right(ends, token)
            rows.append(made[number][0, token - ends[number]])
        logits_RV = torch.stack(rows) if rows else made[0][0, :0]
        return ModelOutput(logits_RV.new_empty(1, 0, 0), logits_RV[None])

    def _begin(self, source: torch.Tensor, written: torch.Tensor, text: EncoderText) -> None:
        """Start a request, from a cached prefix if there is one."""
        state, known = text.state, None
        if text.owner:
            known = self._prefix_cache.find(text.owner, *_tokens(source, written))
        state.encoded = known.encoded if known else None
        state.cache = known.cache if known else None
        state.num_written = known.num_written if known else 0


def _tokens(*texts: torch.Tensor) -> list[tuple[int, ...]]:
    return [tuple(text[0].tolist()) for text in texts]
