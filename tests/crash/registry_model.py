"""A model of the registry as callers know it: its whole behaviour, in a few dicts."""

import copy
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

import sqlalchemy as sa
from blake3 import blake3

from loramux_server.store.alias import Split
from loramux_server.store.reference import full_name, parse_reference
from loramux_server.store.registry import Registry
from loramux_server.store.schema import moves
from tests.support.packages import small_package

PACKAGES = [small_package(number) for number in range(4)]
DIGESTS = [f"sha256:{hashlib.sha256(package).hexdigest()}" for package in PACKAGES]
SEALS = [f"blake3:{blake3(package).hexdigest()}" for package in PACKAGES]

Weights = dict[int, int]


@dataclass
class RegistryModel:
    """Versions, numbers, aliases and pins by the full name of their adapter."""

    versions: dict[str, dict[int, int]] = field(default_factory=dict)
    """Name -> version -> which of PACKAGES it is."""
    last: dict[str, int] = field(default_factory=dict)
    """Name -> the newest number that was ever given."""
    aliases: dict[tuple[str, str], Weights] = field(default_factory=dict)
    moves: dict[tuple[str, str], list[tuple[Weights, Weights]]] = field(default_factory=dict)
    """Name and alias -> what it stood for before and after each move, oldest first."""
    pinned: set[tuple[str, int]] = field(default_factory=set)
    unsealed: set[tuple[str, int]] = field(default_factory=set)
    """Versions of whose files nobody knows the seal."""

    def copy(self) -> Self:
        return copy.deepcopy(self)

    def newest(self, name: str) -> int:
        return max(self.versions[name])

    def upload(self, name: str, number: int) -> int:
        """Register a package and return its version."""
        versions = self.versions.get(name, {})
        if versions and versions[max(versions)] == number:
            self.unsealed.discard((name, max(versions)))
            return max(versions)
        self.last[name] = self.last.get(name, 0) + 1
        self.versions.setdefault(name, {})[self.last[name]] = number
        return self.last[name]

    def delete(self, name: str, version: int | None = None) -> None:
        for gone in [version] if version else list(self.versions[name]):
            del self.versions[name][gone]
            self.pinned.discard((name, gone))
            self.unsealed.discard((name, gone))
        if not self.versions[name]:
            del self.versions[name]
            for table in (self.aliases, self.moves):
                for key in [key for key in table if key[0] == name]:
                    del table[key]

    def is_aliased(self, name: str, version: int) -> bool:
        return any(key[0] == name and version in weights for key, weights in self.aliases.items())

    def set_alias(self, name: str, alias: str, weights: Mapping[int, int]) -> None:
        after = dict(Split.of(weights).weights)
        before = self.aliases.get((name, alias), {})
        if before == after:
            return
        self.moves.setdefault((name, alias), []).append((before, after))
        if after:
            self.aliases[name, alias] = after
        else:
            del self.aliases[name, alias]

    def roll_back(self, name: str, alias: str) -> None:
        self.set_alias(name, alias, self.moves[name, alias][-1][0])

    def pin(self, name: str, version: int, *, pinned: bool) -> None:
        (self.pinned.add if pinned else self.pinned.discard)((name, version))

    def seal(self, number: int, *, known: bool) -> None:
        """Find out the seal of a package, or forget it as if an earlier server had stored it."""
        found = {(name, v) for name, vs in self.versions.items() for v in vs if vs[v] == number}
        self.unsealed = self.unsealed - found if known else self.unsealed | found

    @property
    def digests(self) -> set[str]:
        return {DIGESTS[n] for versions in self.versions.values() for n in versions.values()}


def found_in(registry: Registry) -> RegistryModel:
    """Return what the registry says that it has."""
    found = RegistryModel()
    for record in registry.records(all_versions=True):
        number = DIGESTS.index(record.digest)
        assert record.seal in ("", SEALS[number]), "a file has the seal of another"
        if not record.seal:
            found.unsealed.add((record.full_name, record.version))
        found.versions.setdefault(record.full_name, {})[record.version] = number
        if record.is_pinned:
            found.pinned.add((record.full_name, record.version))
    for name in found.versions:
        reference = parse_reference(name, "name")
        for alias, split in registry.aliases.of((reference.tenant, reference.name)).items():
            found.aliases[name, alias] = dict(split.weights)
    for (tenant, name), number in registry.catalog.last_versions().items():
        found.last[full_name(tenant, name)] = number
    # All at once: to ask for each alias takes longer than the rest together.
    with registry.catalog._engine.connect() as connection:
        for move in connection.execute(sa.select(moves).order_by(moves.c.number)):
            key = full_name(move.tenant, move.name), move.alias
            change = tuple(dict(Split.load(split).weights) for split in (move.before, move.after))
            found.moves.setdefault(key, []).append(change)  # type: ignore[arg-type]
    return found
