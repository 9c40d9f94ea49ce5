"""Encoder-decoders: the encoder reads one text, and the decoder writes another.

Legend: L tokens of a request, N those of them that are written, R rows whose logits are needed, V
tokens of the vocabulary.
"""

import bisect
from collections.abc import Sequence

import torch
from transformers import DynamicCache, EncoderDecoderCache, PreTrainedModel

from loramux_server.kernels.whole_text import WholeText
from loramux_server.models.encoders.kept_texts import KeptTexts, copied, forgets, shortened
from loramux_server.models.encoders.whole_texts import Told, cache_of
from loramux_server.models.recurrent.parts import Rows

SOURCE, WRITTEN = 0, 1
"""The two sides of such a model."""


class Seq2Seq:
    """Runs a model with an encoder and a decoder."""

    def __init__(self, own: PreTrainedModel) -> None:
        self._own = own
        self._kept = KeptTexts()

    def rows(self, start: int, end: int, text: WholeText) -> tuple[Rows, ...]:
        """Return the tokens of the source, and those of the written text."""
        border = start + max(0, text.num_source - text.start)
        return slice(start, border), slice(border, end)

    def read(self, token_1L: torch.Tensor, text: WholeText) -> torch.Tensor:
        """Return the logits of the written tokens that were not cached, [1, N, V]."""
        recall, num_source = text.recall, max(0, text.num_source - text.start)
        source, written = token_1L[:, :num_source], token_1L[:, num_source:]
        if num_source:
            self._begin(source, written, text)
            if text.virtual and recall.cache is None:
                virtual = cache_of(text.virtual, self._own)
                recall.cache = EncoderDecoderCache(virtual, DynamicCache())
            written = written[:, recall.num_written :]
        elif recall.num_written > text.start - text.num_source:  # the last token is computed again
            before = recall.before
            recall.cache = shortened(recall.cache) if before is None else before
            recall.num_written -= 1
        if recall.encoded is None:
            recall.encoded = self._own.get_encoder()(input_ids=source)
        recall.before = recall.cache if forgets(recall.cache) and written.shape[1] == 1 else None
        made = self._own(
            encoder_outputs=recall.encoded,
            decoder_input_ids=written,
            past_key_values=copied(recall.cache),
            use_cache=True,
        )
        recall.cache = made.past_key_values
        recall.num_written += written.shape[1]
        if num_source and text.owner:
            self._kept.keep(text.owner, *_tokens(source, token_1L[:, num_source:]), recall=recall)
        logits_1NV: torch.Tensor = made.logits
        return logits_1NV

    def keep(self, num_bytes: int) -> None:
        """Let requests share encoded sources and prefixes, in a cache of `num_bytes`."""
        self._kept.max_bytes = num_bytes

    def alone(self, token_1L: torch.Tensor, text: WholeText) -> torch.Tensor:
        """Return the logits of all written tokens, [N, V], computed at once."""
        logits_1NV: torch.Tensor = self._own(
            input_ids=token_1L[:, : text.num_source],
            decoder_input_ids=token_1L[:, text.num_source :],
            use_cache=False,
        ).logits
        return logits_1NV[0]

    def told(
        self, made: Sequence[torch.Tensor], starts: Sequence[int], sampled: Sequence[int]
    ) -> Told:
        """Return the logits of the requested rows."""
        ends = starts[1:]
        rows = []
        for token in sampled:
            number = bisect.bisect_right(ends, token)
            rows.append(made[number][0, token - ends[number]])
        logits_RV = torch.stack(rows) if rows else made[0][0, :0]
        return Told(logits_RV.new_empty(1, 0, 0), logits_RV[None])

    def _begin(self, source: torch.Tensor, written: torch.Tensor, text: WholeText) -> None:
        """Start a request, from a cached prefix if there is one."""
        recall, known = text.recall, None
        if text.owner:
            known = self._kept.find(text.owner, *_tokens(source, written))
        recall.encoded = known.encoded if known else None
        recall.cache = known.cache if known else None
        recall.num_written = known.num_written if known else 0


def _tokens(*texts: torch.Tensor) -> list[tuple[int, ...]]:
    return [tuple(text[0].tolist()) for text in texts]
