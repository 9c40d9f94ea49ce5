"""The life of adapters, in any order: what the registry says, and what requests get, all through.

A registry with real files, an engine with its real cache and scheduler, and beside them what
callers were told. Loads read the stored bytes, so a request that is served another version gets
other tokens.
"""

import contextlib
import hashlib
import shutil
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from loramux.errors import (
    AbortedError,
    AlreadyExistsError,
    FailedPreconditionError,
    NotFoundError,
)
from loramux_adapters import read_package
from loramux_server.lora.packed import DamagedError, PackedAdapter
from loramux_server.store.reference import parse_reference
from loramux_server.store.registry import Registry
from loramux_server.store.uploads import Uploads
from loramux_server.wire.adapter_source import AdapterSource
from loramux_server.wire.ask import Ask
from loramux_server.wire.messages import Cancel, Drop, Pin, Submit, Unpin
from loramux_server.wire.sampling import Sampling
from tests.crash.registry_model import DIGESTS, PACKAGES, SEALS, RegistryModel, found_in
from tests.crash.story import publish
from tests.support.fake import FakeModel, FakePacked, HeldExecutor, completion, fake_engine
from tests.support.memory import memory_folder
from tests.support.polling import eventually

ROWS = 16
"""Of the device: two adapters of the four fit."""


class StoredModel(FakeModel):
    """Reads what is stored, and computes with which package it is."""

    def load(self, source: AdapterSource) -> PackedAdapter:
        try:
            data = Path(source.path).read_bytes()
        except FileNotFoundError:
            # Of what is only pinned, nobody keeps the bytes when it is deleted.
            raise DamagedError("the bytes are gone") from None
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        assert digest == source.digest, "a load found other bytes"
        number = DIGESTS.index(digest)
        assert source.seal == SEALS[number]
        return FakePacked(number + 1, source.rank)

    def write(self, source: AdapterSource, row: int, adapter: PackedAdapter) -> None:
        assert isinstance(adapter, FakePacked)
        assert DIGESTS.index(source.digest) + 1 == adapter.number  # type: ignore[attr-defined]
        self._rows[row] = adapter.number  # type: ignore[attr-defined]


@dataclass
class Asked:
    """A request under way."""

    number: int
    """The package that it resolved to."""
    prompt: list[int]
    lease: contextlib.ExitStack
    output: list[int] = field(default_factory=list)


class Lifecycle(RuleBasedStateMachine):
    """Uploads, moves, deletes, pins, requests, evictions and crashes."""

    names = st.sampled_from(["a", "b", "team/a"])
    numbers = st.integers(0, len(PACKAGES) - 1)
    aliases = st.sampled_from(["stable", "canary"])

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(dir=memory_folder())) / "store"
        self.model = RegistryModel()
        self.next_id = 0
        self.open()

    def open(self) -> None:
        self.registry = Registry(self.folder)
        self.uploads = Uploads(self.registry, 1e6)
        self.executor = HeldExecutor()
        self.engine, _, self.cache, _ = fake_engine(
            num_blocks=24, rows=ROWS, host_bytes=120, executor=self.executor, model=StoredModel()
        )
        self.asked: dict[int, Asked] = {}
        self.registry.leases.on_gone = lambda digest: self.engine.receive([Drop(digest)])

    # What callers do

    @rule(name=names, number=numbers, must_not_exist=st.booleans())
    def upload(self, name: str, number: int, must_not_exist: bool) -> None:
        versions = self.model.versions.get(name, {})
        is_newest = bool(versions) and versions[max(versions)] == number
        with contextlib.ExitStack() as stack:
            staged = self.registry.stage()
            stack.callback(self.registry.discard, staged)
            staged.write(PACKAGES[number])
            record = self.registry.publish(name, staged, read_package(staged.file, staged.size))
            if must_not_exist and versions and not is_newest:
                with pytest.raises(AlreadyExistsError):
                    self.registry.register(record, must_not_exist=True)
                return
            made, is_new = self.registry.register(record, must_not_exist=must_not_exist)
        assert (made.version, is_new) == (self.model.upload(name, number), not is_newest)

    @rule(name=names, number=numbers)
    def begin_an_upload(self, name: str, number: int) -> None:
        upload = self.uploads.start(name, DIGESTS[number], len(PACKAGES[number]))
        self.uploads.write(upload, 0, PACKAGES[number][:300])

    @rule(name=names, number=numbers)
    def go_on_with_an_upload(self, name: str, number: int) -> None:
        self.model.upload(name, number)
        if self.uploads.adopt(name, DIGESTS[number], must_not_exist=False):
            return
        upload = self.uploads.start(name, DIGESTS[number], len(PACKAGES[number]))
        self.uploads.write(upload, upload.staged.size, PACKAGES[number][upload.staged.size :])
        self.uploads.end(upload, publish(self.registry, name, upload.staged))

    @rule(name=names)
    def delete(self, name: str) -> None:
        if name not in self.model.versions:
            with pytest.raises(NotFoundError):
                self.registry.delete(name)
            return
        self.registry.delete(name)
        self.model.delete(name)

    @precondition(lambda self: self.model.versions)
    @rule(data=st.data())
    def delete_a_version(self, data: st.DataObject) -> None:
        name, version = self.draw_version(data)
        if self.model.is_aliased(name, version):
            with pytest.raises(FailedPreconditionError, match="move it first"):
                self.registry.delete(f"{name}:{version}")
            return
        self.registry.delete(f"{name}:{version}")
        self.model.delete(name, version)

    @precondition(lambda self: self.model.versions)
    @rule(data=st.data(), alias=aliases, expected=st.none() | st.integers(0, 3))
    def move_an_alias(self, data: st.DataObject, alias: str, expected: int | None) -> None:
        name, version = self.draw_version(data)
        other = data.draw(st.sampled_from(sorted(self.model.versions[name])))
        weights = {version: 1} if version == other else {version: 90, other: 10}
        wanted = None if expected is None else {expected: 1} if expected else {}
        before = self.model.aliases.get((name, alias), {})
        reference = parse_reference(name, "name")
        if wanted is not None and wanted != before:
            with pytest.raises(AbortedError):
                self.registry.aliases.set(reference, alias, weights, by="me", expected=wanted)
            return
        self.registry.aliases.set(reference, alias, weights, by="me", expected=wanted)
        self.model.set_alias(name, alias, weights)

    @precondition(lambda self: self.model.aliases)
    @rule(data=st.data())
    def roll_back(self, data: st.DataObject) -> None:
        name, alias = data.draw(st.sampled_from(sorted(self.model.aliases)))
        before = self.model.moves[name, alias][-1][0]
        reference = parse_reference(name, "name")
        if not before or not set(before) <= set(self.model.versions[name]):
            with pytest.raises(FailedPreconditionError):
                self.registry.aliases.roll_back(reference, alias, by="me")
            return
        self.registry.aliases.roll_back(reference, alias, by="me")
        self.model.roll_back(name, alias)

    @precondition(lambda self: self.model.versions)
    @rule(data=st.data(), pinned=st.booleans())
    def pin(self, data: st.DataObject, pinned: bool) -> None:
        name, version = self.draw_version(data)
        record = self.registry.change(
            f"{name}:{version}", lambda record: replace(record, is_pinned=pinned)
        )
        source = self.registry.source_of(record)
        self.engine.receive([Pin(source) if pinned else Unpin(source.digest)])
        self.model.pin(name, version, pinned=pinned)

    # What requests get

    @precondition(lambda self: self.model.versions)
    @rule(data=st.data(), key=st.text(max_size=2))
    def ask(self, data: st.DataObject, key: str) -> None:
        name, version = self.draw_version(data)
        aliases = [alias for owner, alias in self.model.aliases if owner == name]
        tag = data.draw(st.sampled_from(["", "latest", str(version), *aliases]))
        lease = contextlib.ExitStack()
        reference = f"{name}:{tag}" if tag else name
        record, source = lease.enter_context(self.registry.lease(reference, key=key))
        if tag in aliases:
            assert record.version in self.model.aliases[name, tag]
        else:
            newest = self.model.newest(name)
            assert record.version == (version if tag.isdecimal() else newest)
        prompt = [3, 5, 7, 11, 13, 17][: data.draw(st.integers(1, 6))]
        sampling = Sampling(max_tokens=6, seed=0, temperature=0.0, ignore_eos=True)
        self.engine.receive([Submit(self.next_id, Ask(prompt, source, sampling))])
        number = self.model.versions[name][record.version]
        self.asked[self.next_id] = Asked(number, prompt, lease)
        self.next_id += 1

    @precondition(lambda self: self.asked)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        request_id = data.draw(st.sampled_from(sorted(self.asked)))
        self.engine.receive([Cancel(request_id)])
        self.asked.pop(request_id).lease.close()

    @rule(count=st.integers(1, 8))
    def step(self, count: int) -> None:
        for _ in range(count):
            while len(self.executor):
                self.executor.finish()
            report = self.engine.step()
            assert not report.failures
            for token in report.tokens:
                asked = self.asked[token.request_id]
                asked.output.append(token.token)
                alone = completion(asked.prompt, asked.number + 1, 6, eos=False)
                assert asked.output == alone[: len(asked.output)], "not the version it began with"
                if token.finish:
                    self.asked.pop(token.request_id).lease.close()

    @rule()
    def crash(self) -> None:
        """The copy is what a crash leaves; what comes after it in the original does not count."""
        copy = Path(tempfile.mkdtemp(dir=memory_folder())) / "store"
        assert eventually(self.has_swept)
        shutil.copytree(self.folder, copy)
        self.teardown()
        self.folder = copy
        self.open()

    # What always holds

    @invariant()
    def the_registry_has_what_callers_were_told(self) -> None:
        assert found_in(self.registry) == self.model

    @invariant()
    def bytes_are_there_for_versions_and_requests_and_for_nothing_else(self) -> None:
        assert eventually(self.has_swept)

    def has_swept(self) -> bool:
        found = {f"sha256:{path.name}" for path in (self.folder / "blobs").glob("*/*")}
        in_use = {DIGESTS[asked.number] for asked in self.asked.values()}
        return found == self.model.digests | in_use

    def draw_version(self, data: st.DataObject) -> tuple[str, int]:
        name = data.draw(st.sampled_from(sorted(self.model.versions)))
        return name, data.draw(st.sampled_from(sorted(self.model.versions[name])))

    def teardown(self) -> None:
        for asked in self.asked.values():
            asked.lease.close()
        self.uploads.close()
        self.registry.close()
        shutil.rmtree(self.folder.parent)


Lifecycle.TestCase.settings = settings(max_examples=12, stateful_step_count=30)
TestLifecycle = Lifecycle.TestCase
