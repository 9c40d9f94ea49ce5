"""Whether a base model that reads whole texts computes the same with our parts in it.

Legend: L tokens of a text.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from loramux_server.kernels.attention import AttentionBatch
from loramux_server.kernels.encoder_text import EncoderText, Seq2SeqState
from loramux_server.kernels.step_input import StepInput
from loramux_server.lora.virtual import Virtual
from loramux_server.models.decoder_stack import DecoderStack
from loramux_server.models.encoders.encoder_runner import Reader
from loramux_server.models.step import Step


@dataclass(frozen=True, slots=True)
class Sample:
    """A text that is run both ways."""

    token_L: torch.Tensor
    second_from: int = 0
    num_source: int = 0
    cuts: tuple[int, ...] = ()
    """Where it is cut: the pieces run in successive batches."""

    @property
    def lengths(self) -> list[int]:
        """Tokens of the source and of the written text, or of the only text."""
        if not self.num_source:
            return [len(self.token_L)]
        return [self.num_source, len(self.token_L) - self.num_source]

    @property
    def spans(self) -> list[tuple[int, int]]:
        """Its pieces."""
        return list(itertools.pairwise((0, *self.cuts, len(self.token_L))))

    def text(
        self, start: int = 0, state: Seq2SeqState | None = None, virtual: Virtual | None = None
    ) -> EncoderText:
        """Return it as a request of a batch, from position `start` on."""
        state = Seq2SeqState() if state is None else state
        return EncoderText(self.second_from, self.num_source, start, None, virtual, state)


class EncoderCheck:
    """Some texts, and what a model computes for them before its layers are packed."""

    def __init__(
        self, reader: Reader, samples: Sequence[Sample], step: Step, dtype: torch.dtype
    ) -> None:
        """Run the model's own forward.

        Args:
            reader: Runs the model.
            samples: The texts.
            step: The step object of its layers.
            dtype: The model's dtype.
        """
        self._samples = samples
        self._step = step
        self._dtype = dtype
        with torch.inference_mode():
            self._own = [
                reader.alone(sample.token_L[None], sample.text()).float() for sample in samples
            ]
        self.serves: nn.Module | None = None
        """The module that takes batches; set before anything is compared."""

    @property
    def width(self) -> int:
        """Width of the model's output per token."""
        return self._own[0].shape[-1]

    @property
    def tolerance(self) -> float:
        """The largest difference that rounding explains."""
        return 16 * torch.finfo(self._dtype).eps + 1e-3

    def move(self, device: torch.device) -> None:
        """Refuse: such a model does not support tensor parallelism."""
        raise NotImplementedError(f"a model with an encoder cannot be moved to {device}")

    def difference(self, stack: DecoderStack | None = None) -> float:
        """Return how far the served results are from the model's own, relative to their spread."""
        del stack
        served = torch.cat(self._in_batches(range(len(self._samples))))
        own = torch.cat(self._own)
        rounding = torch.finfo(self._dtype).eps * own.abs()
        error = ((served - own).abs() - rounding).relu()
        return float(error.norm() / (own - own.mean(-1, keepdim=True)).norm())

    def is_invariant(self, stack: DecoderStack | None = None) -> bool:
        """Return whether results are bitwise independent of what else is in the batch."""
        del stack
        numbers = range(len(self._samples))
        together = self._in_batches(numbers)
        return all(torch.equal(together[n], self._in_batches([n])[0]) for n in numbers)

    def _in_batches(self, numbers: Sequence[int]) -> list[torch.Tensor]:
        """Return the results of the samples `numbers`, whose pieces share batches."""
        samples = [self._samples[n] for n in numbers]
        states = [Seq2SeqState() for _ in samples]
        served = [
            self._serve(samples, spans, states)
            for spans in zip(*(sample.spans for sample in samples), strict=True)
        ]
        self._step.texts = ()
        return [torch.cat(pieces) for pieces in zip(*served, strict=True)]

    def _serve(
        self,
        samples: Sequence[Sample],
        spans: Sequence[tuple[int, int]],
        states: Sequence[Seq2SeqState],
    ) -> list[torch.Tensor]:
        """Return the results of one piece of each of `samples`."""
        starts = np.cumsum([0, *(end - start for start, end in spans)], dtype=np.int32)
        borders = itertools.pairwise(starts.tolist())
        # Source tokens have no logits.
        sampled = [
            range(first + max(0, sample.num_source - start), last)
            for (first, last), (start, _), sample in zip(borders, spans, samples, strict=True)
        ]
        given = self._step.take(
            StepInput(
                token_T=torch.cat([
                    sample.token_L[start:end].cpu()
                    for sample, (start, end) in zip(samples, spans, strict=True)
                ]),
                position_T=torch.cat([torch.arange(*span) for span in spans]),
                sampled_R=torch.tensor([token for tokens in sampled for token in tokens]),
                attention=AttentionBatch(
                    query_start_B=starts,
                    context_B=np.array([end for _, end in spans], np.int32),
                    table_BM=np.zeros((len(spans), 1), np.int32),
                    block_size=1,
                    slot_T=torch.zeros(int(starts[-1]), dtype=torch.int64),
                ),
                segments=None,
                texts=tuple(
                    sample.text(start, state)
                    for sample, (start, _), state in zip(samples, spans, states, strict=True)
                ),
            )
        )  # fmt: skip
        assert self.serves is not None
        with torch.inference_mode():
            made = self.serves(input_ids=given.token_T[None], logits_to_keep=given.sampled_R)
        rows = made.hidden[0] if made.hidden.numel() else made.logits[0]
        return list(torch.split(rows.float(), [len(tokens) for tokens in sampled]))
