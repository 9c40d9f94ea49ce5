"""How likely drafted tokens are to hold, by where they come from."""

from loramux_server.engine.ngrams import MOST_RUNS, SIZES

_MEMORY = 64
"""Outcomes of a kind that are remembered."""

Kind = int
"""Of a drafted token: where it was found, by how many tokens before it, and how often in a row it
came there."""
_NUM_RUNS = MOST_RUNS + 1
_NUM_SOURCES = 2
"""The request itself, and what its adapter wrote before."""
_DOUBT = (1.0, 2.0, 4.0)
"""So often tokens were wrong, it is thought at first, that were found by so many of `SIZES`."""
FORCED: Kind = _NUM_SOURCES * len(SIZES) * _NUM_RUNS
"""Of tokens that a form lets come next."""
_RIGHT_FORCED, _WRONG_FORCED = 4.0, 1.0
"""So often they were right, and wrong, it is thought at first."""


def kind_of(source: int, rank: int, num_runs: int) -> Kind:
    """Return the kind of a token that was found in a source by so many of `SIZES`."""
    return (source * len(SIZES) + rank) * _NUM_RUNS + num_runs


class Odds:
    """How often drafted tokens of each kind were right, if those before them were."""

    def __init__(self) -> None:
        """Begin with what is likely, such as that what came often in a row comes again."""
        doubts = [doubt for doubt in _DOUBT for _ in range(_NUM_RUNS)] * _NUM_SOURCES
        self._right = [kind % _NUM_RUNS + 1.0 for kind in range(len(doubts))]
        self._seen = [right + doubt for right, doubt in zip(self._right, doubts, strict=True)]
        self._right.append(_RIGHT_FORCED)
        self._seen.append(_RIGHT_FORCED + _WRONG_FORCED)

    def of(self, kind: Kind) -> float:
        """Return how likely a token of `kind` is."""
        return self._right[kind] / self._seen[kind]

    def learn(self, kind: Kind, is_right: bool) -> None:
        """Take in what became of a token of `kind`."""
        if self._seen[kind] >= _MEMORY:
            self._right[kind] /= 2
            self._seen[kind] /= 2
        self._right[kind] += is_right
        self._seen[kind] += 1
