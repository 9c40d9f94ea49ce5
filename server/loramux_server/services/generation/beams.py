"""The beam search algorithm: which beams continue, and which completions are the best.

Independent of the engine: each step takes the top tokens of every beam and updates the beams.
Results equal those of `generate` in transformers 5 with `num_beams` and without sampling.

Source: `GenerationMixin._beam_search` of transformers, which differs from textbook beam search:
only those among the `num_beams` likeliest continuations that end become completions, and the length
penalty applies when completions are compared, not when beams are.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

Likely = Sequence[tuple[int, float]]
"""The top tokens after a beam with their log-probabilities, likeliest first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BeamOptions:
    """Options of a beam search."""

    num_beams: int
    max_tokens: int
    ends: frozenset[int] = frozenset()
    """Tokens that end a completion."""
    forbidden: frozenset[int] = frozenset()
    """Tokens that are never generated."""
    min_tokens: int = 0
    """Tokens before which none of `ends` is generated."""
    num_forced: int = 0
    """Tokens before the completion that count towards its length in scores."""
    length_penalty: float = 1.0
    early_stopping: bool = False

    @property
    def most_tokens(self) -> int:
        """Maximum tokens of all beams together."""
        return self.num_beams * self.max_tokens

    @property
    def num_likely(self) -> int:
        """How many top tokens of each beam are needed.

        Even if each of `ends` and `forbidden` is among them, as many others as beams are left.
        """
        return self.num_beams + len(self.ends | self.forbidden)


@dataclass(frozen=True, slots=True)
class Beam:
    """A continuation, with its cumulative log-probability."""

    tokens: tuple[int, ...] = ()
    logprob: float = 0.0


@dataclass(frozen=True, slots=True)
class Found:
    """A completion that ended."""

    tokens: tuple[int, ...]
    score: float
    is_stopped: bool
    """Whether its last token ended it, rather than its length."""


@dataclass(slots=True)
class Beams:
    """The state of a search."""

    options: BeamOptions
    running: list[Beam] = field(default_factory=lambda: [Beam()])
    """Beams that continue, the likeliest first; at first one that is empty, none once the search
    ended."""
    found: list[Found] = field(default_factory=list)
    """The best completions so far, best first, at most `num_beams`."""
    length: int = 0
    """Tokens of each of `running`."""

    def advance(self, likely: Sequence[Likely]) -> None:
        """Take one step; `likely` has the top tokens of each of `running`, in that order."""
        options = self.options
        self.length += 1
        is_last = self.length == options.max_tokens
        candidates = [
            (beam, token, beam.logprob + logprob)
            for beam, tokens in zip(self.running, likely, strict=True)
            for token, logprob in tokens
            if math.isfinite(logprob)
            and token not in options.forbidden
            and not (token in options.ends and self.length <= options.min_tokens)
        ]
        candidates.sort(key=lambda candidate: -candidate[2])
        self.found += [
            Found((*beam.tokens, token), self._score(logprob), token in options.ends)
            for beam, token, logprob in candidates[: options.num_beams]
            if is_last or token in options.ends
        ]
        self.found.sort(key=lambda found: -found.score)
        del self.found[options.num_beams :]
        going_on = [candidate for candidate in candidates if candidate[1] not in options.ends]
        self.running = [
            Beam((*beam.tokens, token), logprob)
            for beam, token, logprob in going_on[: options.num_beams]
        ]
        if is_last or not self._may_improve():
            self.running = []

    def _may_improve(self) -> bool:
        """Return whether a beam may still become one of the best completions."""
        if not self.running or len(self.found) < self.options.num_beams:
            return True
        if self.options.early_stopping:
            return False
        return self._score(self.running[0].logprob) > self.found[-1].score

    def _score(self, logprob: float) -> float:
        """Return the score of a completion of the current length."""
        length = self.options.num_forced + self.length
        return logprob / math.pow(length, self.options.length_penalty)
