"""Speculative decoding without a draft model: several draft tokens are verified in one step.

Drafts come from the request's own tokens, from the caller's prediction, or from earlier outputs of
its adapter for its tenant: many fine-tunes write the same patterns again and again. Structured
output that allows only one continuation is a source as well. The step in which the model sees a
draft verifies it: tokens are sampled one after the other, exactly as without it, and it is accepted
up to the first that differs. So a draft decides when a token comes, never which.

Finding drafts in earlier outputs is the idea of SuffixDecoding (Oliaro et al., 2024,
arXiv:2411.04975). Here a token is drafted if it is likely enough for its cost: acceptance rates are
counted for each kind of draft and adapter, whether or not a step had room for the draft, and costs
are known from recent steps (`pace.py`). So a full batch has few drafts.

Knows nothing of tensors or clocks.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

from loramux_server.engine.acceptance_rates import FORCED, AcceptanceRates, Kind, kind_of
from loramux_server.engine.ends import Ends
from loramux_server.engine.ngrams import BORDER, SIZES, Ngrams
from loramux_server.engine.output_history import OutputHistories, OutputHistory
from loramux_server.engine.plan import Chunk
from loramux_server.engine.request import Request

_MAX_INDEXED = 1 << 16
"""Tokens of new requests that are indexed in one step: some ten milliseconds. Others follow."""
_MIN_PROBABILITY = 0.05
"""Tokens less likely than this are never drafted."""
_MANY = 0.3
"""Expected hits per request for which a step waits for the one before it."""


@dataclass(slots=True)
class _Followed:
    """A request, as far as it is indexed."""

    own: Ngrams
    history: OutputHistory
    num_seen: int = 0
    """Tokens of its output that `own` contains."""
    is_kept: bool = True
    """Whether its output is kept when it ends."""
    candidate: Sequence[int] = ()
    """The current candidate for a draft."""
    kinds: list[Kind] = field(default_factory=list)


class Speculation:
    """Finds drafts, and learns what they are worth."""

    def __init__(self, most_tokens: int, ends: Ends) -> None:
        """Begin without texts.

        Args:
            most_tokens: Maximum length of a draft; 0 turns drafts off.
            ends: Knows when requests end.
        """
        self._most_tokens = most_tokens
        self._ends = ends
        self._followed: dict[Request, _Followed] = {}
        self._histories = OutputHistories()

    def drafts(
        self,
        chunks: Sequence[Chunk],
        num_tokens: int,
        token_cost: float,
    ) -> dict[Request, Sequence[int]]:
        """Return the drafts to verify after `chunks`, by request.

        Args:
            chunks: What the step computes anyway.
            num_tokens: How many more tokens the step may have.
            token_cost: Cost of a draft token, relative to that of the step without drafts.
        """
        if not self._most_tokens:
            return {}
        self._histories.index_pending()
        num_chosen = sum(chunk.samples for chunk in chunks)
        least = max(_MIN_PROBABILITY, token_cost * num_chosen)
        found: list[tuple[float, int, Chunk]] = []
        for chunk in self._candidates(chunks):
            # The last token of a text needs no draft.
            most = min(self._ends.num_before(chunk.request) - 1, self._most_tokens)
            found += [
                (-probability, number, chunk)
                for number, probability in enumerate(
                    self._probabilities(chunk.request, most, least)
                )
            ]
        lengths = _worth(found, num_chosen, num_tokens, token_cost)
        return {
            request: self._followed[request].candidate[:length]
            for request, length in lengths.items()
        }

    def expects(self, chunks: Sequence[Chunk]) -> bool:
        """Return whether the step after that of `chunks` is likely to profit from drafts."""
        if not self._most_tokens:
            return False
        probabilities = [
            self._probabilities(chunk.request, 2, 0.0) for chunk in self._candidates(chunks)
        ]
        # The first is the token that the step in flight will yield.
        return sum(both[1] for both in probabilities if len(both) == 2) >= _MANY * len(chunks)

    def end(self, request: Request) -> None:
        """Keep the output of `request`, and forget the request."""
        followed = self._followed.pop(request, None)
        if followed is None:
            return
        self._observe(request, followed)
        if followed.is_kept and request.output:
            self._histories.note(request)

    def forget(self, digest: str) -> None:
        """Forget the outputs of an adapter, those of running requests included."""
        self._histories.forget(digest)
        for request, followed in self._followed.items():
            if request.digest == digest:
                followed.is_kept = False

    def check(self, requests: Collection[Request]) -> None:
        """Assert that only `requests` are followed, and that the limits on texts hold."""
        assert set(self._followed) <= set(requests), "an ended request is followed"
        self._histories.check()

    def _candidates(self, chunks: Sequence[Chunk]) -> Iterator[Chunk]:
        """Yield those of `chunks` that may have a draft, with an up-to-date candidate."""
        num_indexed = 0
        for chunk in chunks:
            request = chunk.request
            if not (chunk.samples and request.may_draft):
                continue
            if request not in self._followed:
                num_indexed += request.num_tokens
                if num_indexed > max(_MAX_INDEXED, request.num_tokens):
                    continue
            self._look(request)
            yield chunk

    def _look(self, request: Request) -> None:
        """Index the new tokens of `request`, and update its candidate."""
        followed = self._followed.get(request)
        if followed is None:
            size = request.num_tokens
            history = self._histories.of(request)
            own = Ngrams([*_predicted(request), *request.tokens(request.num_virtual, size)])
            followed = self._followed[request] = _Followed(own, history, len(request.output))
        elif not self._observe(request, followed) and followed.candidate:
            return
        candidate = self._find_candidate(followed)
        if forced := request.shape.forced:
            candidate = _with_forced(candidate, forced[: self._most_tokens], followed.history.rates)
        followed.candidate, followed.kinds = candidate

    def _observe(self, request: Request, followed: _Followed) -> bool:
        """Index new output tokens and score the candidate; return whether there were any."""
        new = request.output[followed.num_seen :]
        rates = followed.history.rates
        for token, candidate, kind in zip(new, followed.candidate, followed.kinds, strict=False):
            rates.record(kind, token == candidate)
            if token != candidate:
                break
        for token in new:
            followed.own.append(token)
        followed.num_seen = len(request.output)
        return bool(new)

    def _find_candidate(self, followed: _Followed) -> tuple[Sequence[int], list[Kind]]:
        """Return the best candidate, and the kind of each of its tokens."""
        last = followed.own.last()
        best: tuple[Sequence[int], list[Kind]] = (), []
        rates = followed.history.rates
        for source, texts in enumerate((followed.own, followed.history.texts)):
            if place := texts.find(last):
                candidate, runs = texts.following(place, self._most_tokens)
                kinds = [kind_of(source, place.rank, run) for run in runs]
                if kinds and (not best[1] or rates.of(kinds[0]) > rates.of(best[1][0])):
                    best = candidate, kinds
        return best

    def _probabilities(self, request: Request, most: int, least: float) -> list[float]:
        """Return how likely each of the candidate's first tokens is accepted, down to `least`."""
        followed = self._followed[request]
        found: list[float] = []
        probability = 1.0
        for token, kind in zip(followed.candidate[:most], followed.kinds, strict=False):
            probability *= followed.history.rates.of(kind)
            if probability < least:
                break
            found.append(probability)
            if self._ends.is_end(request, token):
                break
        return found


def _with_forced(
    candidate: tuple[Sequence[int], list[Kind]], forced: Sequence[int], rates: AcceptanceRates
) -> tuple[Sequence[int], list[Kind]]:
    """Return the likelier one of a candidate and forced tokens; both combined if they agree."""
    tokens, kinds = candidate
    forced_kinds = [FORCED] * len(forced)
    if list(tokens[: len(forced)]) == list(forced):
        return tokens, [*forced_kinds, *kinds[len(forced) :]]
    if kinds and rates.of(kinds[0]) > rates.of(FORCED):
        return candidate
    return forced, forced_kinds


def _predicted(request: Request) -> list[int]:
    """Return the caller's prediction, preceded by the end of the prompt."""
    if not request.prediction:
        return []
    return [*request.prompt[-SIZES[0] :], *request.prediction, BORDER]


def _worth(
    found: list[tuple[float, int, Chunk]], num_chosen: int, num_tokens: int, token_cost: float
) -> dict[Request, int]:
    """Return how many tokens of each request's draft are worth what they cost.

    Args:
        found: The negated probability of each token, its index in the draft, and its chunk.
        num_chosen: Tokens that the step yields without drafts.
        num_tokens: How many more it may compute.
        token_cost: Cost of each, relative to that of the step without drafts.
    """
    lengths: dict[Request, int] = {}
    gain, cost = float(num_chosen), 1.0
    # The most likely first; within a draft each is less likely than those before it.
    for negated, number, chunk in sorted(found, key=lambda one: one[:2])[:num_tokens]:
        if -negated * cost < token_cost * gain:
            break
        gain -= negated
        cost += token_cost
        lengths[chunk.request] = number + 1
    return lengths
