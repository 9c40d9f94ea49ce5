"""Beam search: which continuations of a prompt go on, and which completions are the best.

Knows nothing of the engine. After each step it is told the likeliest tokens of every beam, and says
what the beams are now. What comes of it is what `generate` of transformers 5 gives with
`num_beams` and without sampling.

Source: `GenerationMixin._beam_search` of transformers, which differs from a textbook's beam search:
only those among the `num_beams` likeliest continuations that end become completions, and lengths
count when completions are compared, not when beams are.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

Likely = Sequence[tuple[int, float]]
"""The likeliest tokens of a beam with their log-probabilities, likeliest first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BeamOptions:
    """What is searched for."""

    num_beams: int
    max_tokens: int
    ends: frozenset[int] = frozenset()
    """Tokens with which a completion ends."""
    forbidden: frozenset[int] = frozenset()
    """Tokens that never come."""
    min_tokens: int = 0
    """Tokens before which none of these comes."""
    num_forced: int = 0
    """Tokens before those of a completion that count where lengths do."""
    length_penalty: float = 1.0
    early_stopping: bool = False

    @property
    def most_tokens(self) -> int:
        """How many tokens all beams have at most."""
        return self.num_beams * self.max_tokens

    @property
    def num_likely(self) -> int:
        """How many tokens of each beam have to be known.

        With each of `ends` and `forbidden` among them there are still as many others as beams.
        """
        return self.num_beams + len(self.ends | self.forbidden)


@dataclass(frozen=True, slots=True)
class Beam:
    """A continuation, with the sum of its log-probabilities."""

    tokens: tuple[int, ...] = ()
    logprob: float = 0.0


@dataclass(frozen=True, slots=True)
class Found:
    """A completion that ended."""

    tokens: tuple[int, ...]
    score: float
    is_stopped: bool
    """Whether its last token ended it, and not its length."""


@dataclass(slots=True)
class Beams:
    """A search from its begin to its end."""

    options: BeamOptions
    running: list[Beam] = field(default_factory=lambda: [Beam()])
    """Those that go on, the likeliest first: at first nothing, once; none when the search ended."""
    found: list[Found] = field(default_factory=list)
    """The best completions so far, at most as many as beams, the best first."""
    length: int = 0
    """Tokens that each of `running` has."""

    def advance(self, likely: Sequence[Likely]) -> None:
        """Take one step; `likely` has the likeliest tokens of each of `running`, in that order."""
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
        """Return whether a beam may become a completion that is wanted."""
        if not self.running or len(self.found) < self.options.num_beams:
            return True
        if self.options.early_stopping:
            return False
        return self._score(self.running[0].logprob) > self.found[-1].score

    def _score(self, logprob: float) -> float:
        """Return what a completion of the present length scores."""
        length = self.options.num_forced + self.length
        return logprob / math.pow(length, self.options.length_penalty)
