"""Drafts: what may come next in a text, so that a step can check several tokens at once.

What is drafted comes from the request's own tokens, from what the caller thinks will come, or from
what its adapter wrote for its tenant before: many fine-tunes write the same forms again and again.
So does a form that leaves a text only one way to go on. No model is asked. A draft is checked by
the step in which the model sees it: tokens are chosen one after the other, exactly as they would be
without it, and it holds up to the first that was chosen otherwise. So it decides when a token
comes, never which.

Finding drafts in earlier outputs is the idea of SuffixDecoding (Oliaro et al., 2024,
arXiv:2411.04975). Here a token is drafted if it is likely enough for what it costs: how often
drafts of its kind were right is counted for each adapter, whether or not a step had room for them,
and what tokens cost is known from the last steps (`pace.py`). So a full batch has few drafts.

Knows nothing of tensors or clocks.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

from loramux_server.engine.ends import Ends
from loramux_server.engine.habits import AllHabits, Habits
from loramux_server.engine.ngrams import BORDER, SIZES, Ngrams
from loramux_server.engine.odds import FORCED, Kind, Odds, kind_of
from loramux_server.engine.plan import Chunk
from loramux_server.engine.request import Request

_MOST_BEGUN = 1 << 16
"""Tokens of requests that are followed from a step on: some ten milliseconds. Others are later."""
_LEAST_ODDS = 0.05
"""What is less likely is never drafted."""
_MANY = 0.3
"""Drafted tokens for each request for which a step waits for the one before it."""


@dataclass(slots=True)
class _Followed:
    """A request, as far as it was seen."""

    own: Ngrams
    habits: Habits
    num_seen: int = 0
    """Tokens of its output that `own` has."""
    is_kept: bool = True
    """Whether what it wrote is kept when it ends."""
    guess: Sequence[int] = ()
    """What was thought to come next."""
    kinds: list[Kind] = field(default_factory=list)


class Speculation:
    """Finds drafts, and learns what they are worth."""

    def __init__(self, most_tokens: int, ends: Ends) -> None:
        """Begin without texts.

        Args:
            most_tokens: Most tokens of a draft; 0 drafts nothing.
            ends: Knows where texts end.
        """
        self._most_tokens = most_tokens
        self._ends = ends
        self._followed: dict[Request, _Followed] = {}
        self._habits = AllHabits()

    def drafts(
        self,
        chunks: Sequence[Chunk],
        num_tokens: int,
        token_cost: float,
    ) -> dict[Request, Sequence[int]]:
        """Return what is to be checked behind `chunks`, of each request that has a draft.

        Args:
            chunks: What the step computes anyway.
            num_tokens: How many tokens more the step may have.
            token_cost: What one costs, as a part of what the step costs without drafts.
        """
        if not self._most_tokens:
            return {}
        self._habits.take_in()
        num_chosen = sum(chunk.samples for chunk in chunks)
        least = max(_LEAST_ODDS, token_cost * num_chosen)
        found: list[tuple[float, int, Chunk]] = []
        for chunk in self._looked_at(chunks):
            # The last token of a text comes without a draft.
            most = min(self._ends.num_before(chunk.request) - 1, self._most_tokens)
            found += [
                (-odds, number, chunk)
                for number, odds in enumerate(self._odds(chunk.request, most, least))
            ]
        lengths = _worth(found, num_chosen, num_tokens, token_cost)
        return {
            request: self._followed[request].guess[:length] for request, length in lengths.items()
        }

    def expects(self, chunks: Sequence[Chunk]) -> bool:
        """Return whether the step after that of `chunks` is likely to have drafts that count."""
        if not self._most_tokens:
            return False
        odds = [self._odds(chunk.request, 2, 0.0) for chunk in self._looked_at(chunks)]
        # The first is the token that the step still has to give.
        return sum(both[1] for both in odds if len(both) == 2) >= _MANY * len(chunks)

    def end(self, request: Request) -> None:
        """Keep what `request` wrote, and forget it."""
        followed = self._followed.pop(request, None)
        if followed is None:
            return
        self._see(request, followed)
        if followed.is_kept and request.output:
            self._habits.note(request)

    def forget(self, digest: str) -> None:
        """Forget what an adapter wrote, and what it still writes."""
        self._habits.forget(digest)
        for request, followed in self._followed.items():
            if request.digest == digest:
                followed.is_kept = False

    def check(self, requests: Collection[Request]) -> None:
        """Assert that nothing is kept of others than `requests`, and not too much of texts."""
        assert set(self._followed) <= set(requests), "one that has ended is followed"
        self._habits.check()

    def _looked_at(self, chunks: Sequence[Chunk]) -> Iterator[Chunk]:
        """Yield those of `chunks` that may have a draft, once it is known what comes next there."""
        num_begun = 0
        for chunk in chunks:
            request = chunk.request
            if not (chunk.samples and request.may_draft):
                continue
            if request not in self._followed:
                num_begun += request.num_tokens
                if num_begun > max(_MOST_BEGUN, request.num_tokens):
                    continue
            self._look(request)
            yield chunk

    def _look(self, request: Request) -> None:
        """Take in what `request` has, and guess what comes next in it."""
        followed = self._followed.get(request)
        if followed is None:
            size = request.num_tokens
            habits = self._habits.of(request)
            own = Ngrams([*_predicted(request), *request.tokens(request.num_virtual, size)])
            followed = self._followed[request] = _Followed(own, habits, len(request.output))
        elif not self._see(request, followed) and followed.guess:
            return
        guess = self._guess(followed)
        if forced := request.shape.forced:
            guess = _with_forced(guess, forced[: self._most_tokens], followed.habits.odds)
        followed.guess, followed.kinds = guess

    def _see(self, request: Request, followed: _Followed) -> bool:
        """Take in what was chosen since the last time, and return whether anything was."""
        new = request.output[followed.num_seen :]
        odds = followed.habits.odds
        for token, guess, kind in zip(new, followed.guess, followed.kinds, strict=False):
            odds.learn(kind, token == guess)
            if token != guess:
                break
        for token in new:
            followed.own.append(token)
        followed.num_seen = len(request.output)
        return bool(new)

    def _guess(self, followed: _Followed) -> tuple[Sequence[int], list[Kind]]:
        """Return what is thought to come next, and of which kind each token is."""
        last = followed.own.last()
        best: tuple[Sequence[int], list[Kind]] = (), []
        odds = followed.habits.odds
        for source, texts in enumerate((followed.own, followed.habits.texts)):
            if place := texts.find(last):
                guess, runs = texts.following(place, self._most_tokens)
                kinds = [kind_of(source, place.rank, run) for run in runs]
                if kinds and (not best[1] or odds.of(kinds[0]) > odds.of(best[1][0])):
                    best = guess, kinds
        return best

    def _odds(self, request: Request, most: int, least: float) -> list[float]:
        """Return how likely each of the first tokens of the guess is, down to `least`."""
        followed = self._followed[request]
        found: list[float] = []
        odds = 1.0
        for token, kind in zip(followed.guess[:most], followed.kinds, strict=False):
            odds *= followed.habits.odds.of(kind)
            if odds < least:
                break
            found.append(odds)
            if self._ends.is_end(request, token):
                break
        return found


def _with_forced(
    guess: tuple[Sequence[int], list[Kind]], forced: Sequence[int], odds: Odds
) -> tuple[Sequence[int], list[Kind]]:
    """Return what is likelier to come: a guess, or what a form lets come; both if they agree."""
    tokens, kinds = guess
    forced_kinds = [FORCED] * len(forced)
    if list(tokens[: len(forced)]) == list(forced):
        return tokens, [*forced_kinds, *kinds[len(forced) :]]
    if kinds and odds.of(kinds[0]) > odds.of(FORCED):
        return guess
    return forced, forced_kinds


def _predicted(request: Request) -> list[int]:
    """Return what the caller thinks that comes, after the tokens after which it would."""
    if not request.prediction:
        return []
    return [*request.prompt[-SIZES[0] :], *request.prediction, BORDER]


def _worth(
    found: list[tuple[float, int, Chunk]], num_chosen: int, num_tokens: int, token_cost: float
) -> dict[Request, int]:
    """Return how many tokens of each request's draft are worth what they cost.

    Args:
        found: What is negated the odds of a token, its number in the draft, and whose it is.
        num_chosen: Tokens that the step gives without drafts.
        num_tokens: How many more it may compute.
        token_cost: What each costs, as a part of what the step costs without them.
    """
    lengths: dict[Request, int] = {}
    gain, cost = float(num_chosen), 1.0
    # The likeliest first; within a draft each is less likely than those before it.
    for negated, number, chunk in sorted(found, key=lambda one: one[:2])[:num_tokens]:
        if -negated * cost < token_cost * gain:
            break
        gain -= negated
        cost += token_cost
        lengths[chunk.request] = number + 1
    return lengths
