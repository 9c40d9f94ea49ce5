"""Stories: what callers do to a registry, beside what they are told of it."""

import contextlib
import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from loramux_adapters import read_package
from loramux_server.store.blobs import Staged
from loramux_server.store.record import directory_record
from loramux_server.store.reference import parse_reference
from loramux_server.store.registry import Registry
from loramux_server.store.uploads import Registered, Upload, Uploads
from tests.crash.registry_model import DIGESTS, PACKAGES, SEALS, RegistryModel, Weights
from tests.crash.seen import Watch, seen_registry

EXPIRY = 1e6


class Listener(Watch, Protocol):
    """Who is told of operations, and of the calls that they belong to."""

    def change(self, after: RegistryModel) -> AbstractContextManager[None]:
        """A call that leads to `after`."""


class Teller:
    """A registry with one caller, who never does two things at once."""

    def __init__(self, folder: Path, watch: Listener, catalog: str | None = None) -> None:
        self._folder = folder
        self._watch = watch
        self._catalog = catalog
        self.model = RegistryModel()
        self.open()

    def open(self) -> None:
        """Start a server."""
        self.registry = seen_registry(self._folder, self._watch, self._catalog)
        self.uploads = Uploads(self.registry, EXPIRY)

    def close(self) -> None:
        """End it in order."""
        self.uploads.close()
        self.registry.close()

    def restart(self) -> None:
        """End the server in order and start another."""
        self.close()
        self.open()

    @contextlib.contextmanager
    def _change(self, change: Callable[[RegistryModel], object]) -> Iterator[None]:
        after = self.model.copy()
        change(after)
        with self._watch.change(after):
            yield
        self.model = after

    def upload(self, name: str, number: int) -> None:
        """Upload a package in one go, in two pieces."""
        with self._change(lambda model: model.upload(name, number)):
            staged = self.registry.stage()
            try:
                _write(staged, number)
                publish(self.registry, name, staged)
            finally:
                self.registry.discard(staged)

    def give_up(self, name: str, number: int, *, published: bool) -> None:
        """Upload a package that is not registered in the end."""
        staged = self.registry.stage()
        _write(staged, number)
        if published:
            package = read_package(staged.file, staged.size)
            self.registry.publish(name, staged, package)
        self.registry.discard(staged)

    def begin(self, name: str, number: int) -> Upload:
        """Bring the first half of a package that is to be gone on with."""
        data = PACKAGES[number]
        upload = self.uploads.start(name, DIGESTS[number], len(data))
        if upload.staged.size < len(data) // 2:
            self.uploads.write(upload, 0, data[: len(data) // 2])
        return upload

    def go_on(self, name: str, number: int) -> None:
        """Bring what is missing of a package and register it."""
        data = PACKAGES[number]
        with self._change(lambda model: model.upload(name, number)):
            if self.uploads.adopt(name, DIGESTS[number], must_not_exist=False):
                return
            upload = self.begin(name, number)
            self.uploads.write(upload, upload.staged.size, data[upload.staged.size :])
            self.uploads.end(upload, publish(self.registry, name, upload.staged))

    def take_from_directory(self, name: str, number: int) -> None:
        """Register a package as the look at a directory does."""

        def change(model: RegistryModel) -> None:
            old = dict(model.versions.get(name, {}))
            version = model.upload(name, number)
            for gone in old:
                if gone != version and not model.is_aliased(name, gone):
                    model.delete(name, gone)

        with self._change(change):
            staged = self.registry.stage()
            try:
                _write(staged, number)
                package = read_package(staged.file, staged.size)
                record = self.registry.publish(name, staged, package)
                self.registry.register(directory_record(record, f"stamp {number}"))
            finally:
                self.registry.discard(staged)

    def delete(self, name: str, version: int | None = None) -> None:
        """Delete an adapter or a version of it."""
        with self._change(lambda model: model.delete(name, version)):
            self.registry.delete(f"{name}:{version}" if version else name)

    def delete_in_use(self, name: str) -> None:
        """Delete an adapter that a request uses, which ends afterwards."""
        with self.registry.lease(name):
            self.delete(name)
        # The bytes go in a thread of their own, which has ended then.
        self.restart()

    def set_alias(self, name: str, alias: str, weights: Weights) -> None:
        """Move an alias."""
        with self._change(lambda model: model.set_alias(name, alias, weights)):
            self.registry.aliases.set(parse_reference(name, "name"), alias, weights, by="me")

    def roll_back(self, name: str, alias: str) -> None:
        """Move an alias back."""
        with self._change(lambda model: model.roll_back(name, alias)):
            self.registry.aliases.roll_back(parse_reference(name, "name"), alias, by="me")

    def pin(self, name: str, *, pinned: bool) -> None:
        """Pin or unpin the newest version of an adapter."""
        with self._change(lambda model: model.pin(name, model.newest(name), pinned=pinned)):
            self.registry.change(name, lambda record: replace(record, is_pinned=pinned))

    def seal(self, number: int, *, known: bool) -> None:
        """Keep the seal of a package that a load found, or be a store that knows none."""
        with self._change(lambda model: model.seal(number, known=known)):
            self.registry.keep_seals({DIGESTS[number]: SEALS[number] if known else ""})


def publish(registry: Registry, name: str, staged: Staged) -> Registered:
    """Check, store and register what was staged."""
    package = read_package(staged.file, staged.size)
    return registry.register(registry.publish(name, staged, package))


def _write(staged: Staged, number: int) -> None:
    data = PACKAGES[number]
    staged.write(data[:100])
    staged.file.flush()
    staged.write(data[100:])


def upload(teller: Teller) -> None:
    """Uploads under several names, some of which are given up."""
    teller.upload("a", 0)
    teller.give_up("a", 1, published=False)
    teller.upload("team/b", 1)
    teller.give_up("c", 2, published=True)
    teller.upload("a", 2)


def resume(teller: Teller) -> None:
    """Uploads that take several attempts, with a restart between."""
    teller.begin("a", 0)
    teller.begin("b", 1)
    teller.restart()
    teller.go_on("a", 0)
    teller.go_on("b", 1)
    teller.begin("a", 2)


def repeat(teller: Teller) -> None:
    """The same content again: under its name, under another, and in place of damaged bytes."""
    teller.upload("a", 0)
    teller.upload("a", 0)
    teller.upload("b", 0)
    teller.go_on("c", 0)
    teller.give_up("a", 0, published=True)
    teller.upload("a", 1)
    teller.upload("a", 0)


def delete(teller: Teller) -> None:
    """Versions and adapters that go, some of which share their bytes."""
    for name, number in (("a", 0), ("a", 1), ("b", 0), ("c", 2)):
        teller.upload(name, number)
    teller.delete("a", 2)
    teller.delete("a")
    teller.delete_in_use("c")
    teller.upload("a", 1)
    teller.delete("b")


def move(teller: Teller) -> None:
    """Aliases that move, split, go back, and keep versions."""
    for number in range(3):
        teller.upload("a", number)
    teller.set_alias("a", "stable", {1: 1})
    teller.set_alias("a", "stable", {1: 95, 3: 5})
    teller.set_alias("a", "canary", {3: 1})
    teller.roll_back("a", "stable")
    teller.pin("a", pinned=True)
    teller.delete("a", 2)
    teller.pin("a", pinned=False)
    teller.set_alias("a", "canary", {})
    teller.delete("a")


def follow(teller: Teller) -> None:
    """A directory whose adapters change."""
    teller.take_from_directory("a", 0)
    teller.set_alias("a", "stable", {1: 1})
    for number in (1, 2, 2):
        teller.take_from_directory("a", number)


def seal(teller: Teller) -> None:
    """Versions of an earlier server, whose seals are found by loads and by what comes again."""
    for name, number in (("a", 0), ("a", 1), ("team/b", 0), ("c", 1)):
        teller.upload(name, number)
    for number in range(2):
        teller.seal(number, known=False)
    teller.seal(0, known=True)
    teller.upload("a", 1)
    teller.go_on("b", 1)
    teller.delete("c")
    teller.seal(1, known=True)


STORIES: dict[str, Callable[[Teller], None]] = {
    story.__name__: story for story in (upload, resume, repeat, delete, move, follow, seal)
}


def ramble(seed: int, num_calls: int = 12) -> Callable[[Teller], None]:
    """Return a story of random calls, the same for the same seed."""

    def story(teller: Teller) -> None:
        chance = random.Random(seed)
        for _ in range(num_calls):
            _any_call(teller, chance)

    return story


def _any_call(teller: Teller, chance: random.Random) -> None:
    name, number = chance.choice(["a", "b", "team/a"]), chance.randrange(len(PACKAGES))
    calls: list[Callable[[], object]] = [
        lambda: teller.upload(name, number),
        lambda: teller.give_up(name, number, published=chance.random() < 0.5),
        lambda: teller.begin(name, number),
        lambda: teller.go_on(name, number),
        teller.restart,
    ]
    if versions := teller.model.versions.get(name):
        version = chance.choice(list(versions))
        calls += [
            lambda: teller.pin(name, pinned=chance.random() < 0.5),
            lambda: teller.seal(number, known=chance.random() < 0.5),
            lambda: teller.set_alias(name, "stable", {version: 1}),
            lambda: teller.set_alias(name, "canary", dict.fromkeys(versions, 1)),
        ]
        if teller.model.is_aliased(name, version):
            calls += [lambda: teller.delete(name), lambda: teller.delete_in_use(name)]
        else:
            calls += [lambda: teller.delete(name, version)]
    chance.choice(calls)()
