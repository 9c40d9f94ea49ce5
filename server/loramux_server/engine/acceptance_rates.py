"""Acceptance rates of draft tokens, by their source."""

from loramux_server.engine.ngrams import MOST_RUNS, SIZES

_MEMORY = 64
"""Outcomes of a kind after which earlier ones count half."""

Kind = int
"""Kind of a draft token: its source, the length of the match before it, and its run length."""
_NUM_RUNS = MOST_RUNS + 1
_NUM_SOURCES = 2
"""The request itself, and earlier outputs of its adapter."""
_DOUBT = (1.0, 2.0, 4.0)
"""Prior number of rejections, for each match length in `SIZES`."""
FORCED: Kind = _NUM_SOURCES * len(SIZES) * _NUM_RUNS
"""Kind of tokens that structured output forces."""
_RIGHT_FORCED, _WRONG_FORCED = 4.0, 1.0
"""Prior numbers of their acceptances and rejections."""


def kind_of(source: int, rank: int, num_runs: int) -> Kind:
    """Return the kind of a token; `rank` is the index in `SIZES` of its match length."""
    return (source * len(SIZES) + rank) * _NUM_RUNS + num_runs


class AcceptanceRates:
    """Acceptance rate of each kind of draft token, given that those before it were accepted."""

    def __init__(self) -> None:
        """Begin with priors, such as that long runs continue."""
        doubts = [doubt for doubt in _DOUBT for _ in range(_NUM_RUNS)] * _NUM_SOURCES
        self._right = [kind % _NUM_RUNS + 1.0 for kind in range(len(doubts))]
        self._seen = [right + doubt for right, doubt in zip(self._right, doubts, strict=True)]
        self._right.append(_RIGHT_FORCED)
        self._seen.append(_RIGHT_FORCED + _WRONG_FORCED)

    def of(self, kind: Kind) -> float:
        """Return the acceptance rate of tokens of `kind`."""
        return self._right[kind] / self._seen[kind]

    def record(self, kind: Kind, is_right: bool) -> None:
        """Record whether a token of `kind` was right."""
        if self._seen[kind] >= _MEMORY:
            self._right[kind] /= 2
            self._seen[kind] /= 2
        self._right[kind] += is_right
        self._seen[kind] += 1
