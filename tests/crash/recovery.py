"""What has to hold when a store is opened after a crash, whatever moment that came at."""

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from loramux_server.store.record import DIRECTORY
from loramux_server.store.reference import parse_reference
from loramux_server.store.registry import Registry
from loramux_server.store.uploads import Uploads, id_of
from tests.crash.disk import Disk, Image
from tests.crash.journal import Journal
from tests.crash.registry_model import DIGESTS, PACKAGES, RegistryModel, found_in
from tests.crash.seen import Log, Op, seen_registry
from tests.crash.story import EXPIRY, publish

NAMES = ["a", "b", "c", "team/a", "team/b"]


def check_recovery(folder: Path, allowed: Sequence[RegistryModel], *, power_cut: bool) -> list[Op]:
    """Open the store in `folder`, demand that it is whole, and go on with it.

    Args:
        folder: The store, as the crash left it.
        allowed: What may be found: what was acknowledged, or that with what was under way.
        power_cut: Whether bytes that were not synced may be wrong.

    Returns:
        What was done to open it.
    """
    log = Log()
    registry = seen_registry(folder, log)
    uploads = Uploads(registry, EXPIRY)
    try:
        ops = list(log.ops)
        model = found_in(registry)
        assert model in allowed, f"found {model}, allowed {allowed}"
        check_files(folder, model)
        check_quotas(registry, model)
        for path in (folder / "staging").iterdir():
            assert path.suffix == ".upload", f"{path.name} is left in staging"
            is_part = any(package.startswith(path.read_bytes()) for package in PACKAGES)
            assert is_part or power_cut, f"{path.name} is no part of a package"
        _go_on(folder, registry, uploads, model)
        _upload_more(registry, model)
        check_files(folder, model)
        check_quotas(registry, model)
        assert found_in(registry) == model
    finally:
        uploads.close()
        registry.close()
    return ops


def check_files(folder: Path, model: RegistryModel) -> None:
    """Demand that the bytes of all versions are there, and no others."""
    found = {}
    for path in (folder / "blobs").glob("*/*"):
        found[f"sha256:{path.name}"] = hashlib.sha256(path.read_bytes()).hexdigest()
    assert set(found) == model.digests, "bytes are missing, or nobody needs them"
    for digest, content in found.items():
        assert digest == f"sha256:{content}", f"{digest} has other bytes"


def check_quotas(registry: Registry, model: RegistryModel) -> None:
    """Demand that each tenant is charged for what it has, and for nothing else."""
    references = {name: parse_reference(name, "name") for name in model.versions}
    for tenant in ("public", "team"):
        names = [name for name, reference in references.items() if reference.tenant == tenant]
        provided = {record.full_name for record in registry.records() if record.is_provided}
        own = [name for name in names if name not in provided]
        numbers = {number for name in own for number in model.versions[name].values()}
        num_bytes = sum(len(PACKAGES[number]) for number in numbers)
        assert registry.quotas.taken(tenant) == (num_bytes, len(own))


def _go_on(folder: Path, registry: Registry, uploads: Uploads, model: RegistryModel) -> None:
    """Finish uploads of which a part is there, as their callers would."""
    for name in NAMES:
        for number, data in enumerate(PACKAGES):
            path = folder / "staging" / f"{id_of(name, DIGESTS[number], len(data))}.upload"
            if not path.exists():
                continue
            model.upload(name, number)
            if uploads.adopt(name, DIGESTS[number], must_not_exist=False):
                path.unlink()
                continue
            upload = uploads.start(name, DIGESTS[number], len(data))
            uploads.write(upload, upload.staged.size, data[upload.staged.size :])
            if upload.staged.digest != DIGESTS[number]:
                # What a power cut left was not what had come: it begins anew.
                upload = uploads.start(name, DIGESTS[number], len(data))
                assert upload.staged.size == 0
                uploads.write(upload, 0, data)
            uploads.end(upload, publish(registry, name, upload.staged))


def _upload_more(registry: Registry, model: RegistryModel) -> None:
    """Upload something to a name, whose numbers have to go on where they were."""
    is_read_only = any(record.source == DIRECTORY for record in registry.versions("a"))
    name = "z" if is_read_only else "a"
    versions = model.versions.get(name)
    number = (versions[max(versions)] + 1) % len(PACKAGES) if versions else 0
    staged = registry.stage()
    staged.write(PACKAGES[number])
    record, _ = publish(registry, name, staged)
    registry.discard(staged)
    assert record.version == model.upload(name, number)


@dataclass
class Tally:
    """How much was tried."""

    moments: int = 0
    """Moments of a crash, some of which leave the same."""
    states: int = 0
    """Different disks that were opened after them."""
    in_recovery: int = 0
    """Those of them that a second crash left, during the start after the first."""


@dataclass
class Replay:
    """Opens the store on what crashes leave."""

    folder: Path
    """For disks; each is deleted when it was looked at."""
    tally: Tally = field(default_factory=Tally)
    _seen: set[bytes] = field(default_factory=set)

    def kills(self, journal: Journal) -> None:
        """Try the kills of a story, and those of the starts after them."""
        for image, allowed in journal.kills():
            self._try(image, allowed, power_cut=False)

    def power_cuts(self, journal: Journal, limit: int) -> None:
        """Try power cuts after each operation of a story, `limit` outcomes of each."""
        for image, allowed in journal.power_cuts(limit):
            self._try(image, allowed, power_cut=True)

    def _try(self, image: Image, allowed: tuple[RegistryModel, ...], *, power_cut: bool) -> None:
        ops = self._open(image, allowed, power_cut=power_cut)
        before = self.tally.states
        disk = Disk(image)
        for op in ops[:-1]:
            disk.apply(op)
            self._open(disk.killed(), allowed, power_cut=power_cut)
        self.tally.in_recovery += self.tally.states - before

    def _open(
        self, image: Image, allowed: tuple[RegistryModel, ...], *, power_cut: bool
    ) -> list[Op]:
        self.tally.moments += 1
        key = hashlib.sha256(f"{image.key} {allowed} {power_cut}".encode()).digest()
        if key in self._seen:
            return []
        self._seen.add(key)
        self.tally.states += 1
        folder = self.folder / "store"
        image.write(folder)
        try:
            return check_recovery(folder, allowed, power_cut=power_cut)
        finally:
            shutil.rmtree(folder)
