"""Aliases: tags that move from version to version, or split keys between several by weight."""

import bisect
import datetime
import hashlib
import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass

MAX_WEIGHT = 10_000
MAX_VERSIONS = 16
"""Versions among which one alias may split."""

_HASH_SPACE = 1 << 64


@dataclass(frozen=True, slots=True)
class Split:
    """The versions that an alias resolves to, each with its share of the keys."""

    weights: tuple[tuple[int, int], ...] = ()
    """(version, weight), sorted by version; empty if there is no alias."""

    @classmethod
    def of(cls, weights: Mapping[int, int]) -> "Split":
        """Return the split of `weights`, by version. A single version always gets weight 1.

        Raises:
            ValueError: There are too many versions, or a weight is out of range.
        """
        if len(weights) > MAX_VERSIONS:
            raise ValueError(f"{len(weights)} versions; an alias has at most {MAX_VERSIONS}")
        for version, weight in weights.items():
            if not 1 <= weight <= MAX_WEIGHT:
                raise ValueError(f"version {version} has weight {weight}, not 1 to {MAX_WEIGHT}")
        if len(weights) == 1:
            return cls(tuple((version, 1) for version in weights))
        return cls(tuple(sorted(weights.items())))

    @property
    def versions(self) -> tuple[int, ...]:
        """The versions, in order."""
        return tuple(version for version, _ in self.weights)

    @property
    def heaviest(self) -> int:
        """The version with the largest weight, the newest of equal ones."""
        return max(self.weights, key=lambda pair: (pair[1], pair[0]))[0]

    def choose(self, key: str) -> int:
        """Return the version for `key`: always the same one while the weights are.

        Versions own consecutive ranges of the hash space, in order, so a growing weight moves keys
        only towards its version.
        """
        if len(self.weights) == 1:
            return self.weights[0][0]
        digest = hashlib.sha256(key.encode()).digest()
        ends = list(itertools.accumulate(weight for _, weight in self.weights))
        place = int.from_bytes(digest[:8]) * ends[-1] // _HASH_SPACE
        return self.weights[bisect.bisect_right(ends, place)][0]

    def dump(self) -> str:
        """Return it as text for the catalog."""
        return json.dumps(dict(self.weights))

    @classmethod
    def load(cls, text: str) -> "Split":
        """Return the split that `dump` wrote as `text`."""
        return cls(tuple((int(version), weight) for version, weight in json.loads(text).items()))

    def __str__(self) -> str:
        if len(self.weights) == 1:
            return f"version {self.weights[0][0]}"
        parts = ", ".join(f"{version}: {weight}" for version, weight in self.weights)
        return f"{{{parts}}}" if parts else "no version"


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """One change of an alias."""

    tenant: str
    name: str
    alias: str
    before: Split
    """Empty if the alias was new."""
    after: Split
    """Empty if the alias was deleted."""
    moved_at: datetime.datetime
    moved_by: str
    number: int = 0
    """Sequence number among the moves of all aliases; 0 until it is in the catalog."""
