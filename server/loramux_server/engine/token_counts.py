"""Tokens whose logits a request's parameters adjust, and how often its output has each.

Legend: M tokens, in order of first appearance.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from loramux_server.kernels.adjust import Adjustments
from loramux_server.lora.segments import Float32, Int32
from loramux_server.wire.sampling import Sampling

_ROOM = 64
_NEUTRAL = (1.0, 1.0, 0.0, 0.0)
"""A row of `Adjustments.factors_R4` that changes nothing."""


@dataclass(frozen=True, slots=True)
class Counted:
    """The entries of `Adjustments` for one row."""

    token_M: Int32
    bias_M: Float32
    is_seen_M: Int32
    count_M: Int32

    @staticmethod
    def of_none(size: int) -> "Counted":
        """Return `size` entries for token 0 that change nothing."""
        return Counted(
            np.zeros(size, np.int32), np.zeros(size, np.float32),
            np.zeros(size, np.int32), np.zeros(size, np.int32),
        )  # fmt: skip

    @property
    def columns(self) -> tuple[npt.NDArray[Any], ...]:
        """All of its arrays."""
        return self.token_M, self.bias_M, self.is_seen_M, self.count_M


class TokenCounts:
    """Counts the tokens in the output of one request."""

    def __init__(
        self,
        sampling: Sampling,
        prompt: Sequence[int],
        eos_token_ids: Iterable[int],
        vocab_size: int | None,
    ) -> None:
        """Begin with an empty output.

        Args:
            sampling: The parameters.
            prompt: The text before the output, without placeholders for virtual tokens.
            eos_token_ids: End-of-sequence tokens.
            vocab_size: Vocabulary size of the base with the request's adapter: other tokens have
                no logits. None if no other token can occur.
        """
        self._sampling = sampling
        self._prompt = prompt
        self._eos_token_ids = eos_token_ids
        self._vocab_size = vocab_size
        self._place: dict[int, int] = {}
        self._rows = Counted.of_none(_ROOM)
        self._num_counted = 0
        """Tokens of the output that are counted."""
        self._penalizes = sampling.repetition_penalty != 1.0
        self._counts = bool(sampling.presence_penalty or sampling.frequency_penalty)
        self._ends: list[int] | None = None
        """Places of stop and EOS tokens that `min_tokens` forbids; None before the first `at`."""
        self._bad_ends: dict[int, list[tuple[list[int], int]]] = {}
        """Of bad words: next to last token -> all tokens before the last one, and its place."""

    def _begin(self) -> list[int]:
        """Add tokens of the parameters and the prompt; deferred until used: prompts may be long."""
        sampling = self._sampling
        for token, bias in sampling.logit_bias.items():
            self._add(token, bias=bias)
        for token in dict.fromkeys(self._prompt if self._penalizes else ()):
            self._add(token, is_seen=1)
        for *before, last in sampling.bad_words:
            place = self._add(last, bias=0.0 if before else -np.inf)
            if before and place is not None:
                self._bad_ends.setdefault(before[-1], []).append((before, place))
        ends = set(sampling.stop_token_ids if sampling.min_tokens else ())
        if sampling.min_tokens and not sampling.ignore_eos:
            ends.update(self._eos_token_ids)
        return [place for token in sorted(ends) if (place := self._add(token)) is not None]

    @property
    def factors(self) -> tuple[float, float, float, float]:
        """A row of `Adjustments.factors_R4`."""
        sampling = self._sampling
        penalty = sampling.repetition_penalty
        return 1 / penalty, penalty, sampling.presence_penalty, sampling.frequency_penalty

    def at(self, position: int, output: Sequence[int]) -> Counted:
        """Return the entries for sampling the output token at `position`.

        Args:
            position: Counted from 0.
            output: The tokens before it, as far as known; the same as last time, or longer.
        """
        if self._ends is None:
            self._ends = self._begin()
        if self._penalizes or self._counts:
            for token in output[self._num_counted :]:
                self._add(token, is_seen=1, count=1)
            self._num_counted = len(output)
        size, rows = len(self._place), self._rows
        bias_M = rows.bias_M[:size]
        ends = self._bad_ends.get(output[-1], ()) if self._bad_ends and output else ()
        excluded = [place for before, place in ends if list(output[-len(before) :]) == before]
        if position < self._sampling.min_tokens:
            excluded += self._ends
        if excluded:
            bias_M = bias_M.copy()
            bias_M[excluded] = -np.inf
        return Counted(rows.token_M[:size], bias_M, rows.is_seen_M[:size], rows.count_M[:size])

    def _add(
        self, token: int, *, bias: float = 0.0, is_seen: int = 0, count: int = 0
    ) -> int | None:
        """Add to the entry of a token, and return its place; None if it has no logit."""
        if self._vocab_size is not None and token >= self._vocab_size:
            return None
        place = self._place.setdefault(token, len(self._place))
        rows = self._rows
        if place == len(rows.token_M):
            longer = (np.concatenate((column, np.zeros_like(column))) for column in rows.columns)
            rows = self._rows = Counted(*longer)
        rows.token_M[place] = token
        rows.bias_M[place] += bias
        rows.is_seen_M[place] |= is_seen
        rows.count_M[place] += count
        return place


def counts_of(
    sampling: Sampling,
    prompt: Sequence[int],
    eos_token_ids: Iterable[int],
    vocab_size: int | None = None,
) -> TokenCounts | None:
    """Return the `TokenCounts` of a request; None if its parameters leave logits unchanged."""
    if not sampling.changes_logits:
        return None
    return TokenCounts(sampling, prompt, eos_token_ids, vocab_size)


@dataclass(frozen=True, slots=True)
class SampledRow:
    """A row of a step for which a token is sampled."""

    counts: TokenCounts | None
    """None if its request leaves logits unchanged."""
    position: int
    """Index of the token in the output."""
    output: Sequence[int]
    """The tokens before it, as far as known: all, or all but one."""


def adjustments_of(rows: Sequence[SampledRow]) -> Adjustments | None:
    """Return the logit adjustments of a step's rows, on the host; None if there are none."""
    counts = [
        (number, row.counts.at(row.position, row.output))
        for number, row in enumerate(rows)
        if row.counts
    ]
    if not counts:
        return None
    numbers, said = [number for number, _ in counts], [counted for _, counted in counts]
    lengths = [len(counted.token_M) for counted in said]
    if not any(lengths):
        numbers, said, lengths = [0], [Counted.of_none(1)], [1]
    token_E, bias_E, is_seen_E, count_E = (
        torch.from_numpy(np.concatenate(columns))
        for columns in zip(*(counted.columns for counted in said), strict=True)
    )
    factors = [row.counts.factors if row.counts else _NEUTRAL for row in rows]
    lacks_one = [row.position > len(row.output) for row in rows]
    return Adjustments(
        torch.from_numpy(np.repeat(np.array(numbers, np.int32), lengths)),
        token_E,
        bias_E,
        is_seen_E,
        count_E,
        torch.tensor(factors),
        torch.tensor(lacks_one, dtype=torch.int32),
    )
