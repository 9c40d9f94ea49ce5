"""Faults of the disk and the database at every operation: the right status, and nothing partial."""

import errno
import hashlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import grpc
import pytest
import sqlalchemy.exc

from loramux.errors import LoramuxError, ResourceExhaustedError, UnavailableError
from loramux.v1.adapters_pb2 import (
    DeleteAdapterRequest,
    DownloadAdapterRequest,
    UploadAdapterRequest,
)
from loramux.v1.aliases_pb2 import SetAliasRequest, Split
from loramux_server.store.registry import Registry
from tests.crash.recovery import check_files, check_quotas
from tests.crash.registry_model import PACKAGES, RegistryModel, found_in
from tests.crash.seen import Op, seen_registry
from tests.support.services import CONTEXT, InstantEngine, Services
from tests.support.wire import chunks, upload_header

CODES = [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.EINTR]
FULL = (errno.ENOSPC, errno.EDQUOT)
TOLERATED = {"remove", "open", "read"}
"""What may fail without harm: what is not deleted is left to the next start, and bytes that cannot
be read are sent again."""


class Fault:
    """Lets one operation fail, once; notes what was done."""

    def __init__(self) -> None:
        self.ops: list[Op] = []
        self.hit: Op | None = None
        self._left = -1
        self._code = 0
        self._failed_syncs: set[str] = set()

    def arm(self, index: int, code: int) -> None:
        """Let the operation `index` from now on fail with `code`.

        0 stands for a write of a single byte, and -1 for one that is done, but said to have failed.
        """
        self.ops, self.hit, self._left, self._code = [], None, index, code

    def before(self, op: Op) -> int | None:
        self._check_syncs(op)
        self.ops.append(op)
        if self._left < 0:
            return None
        if self._left == 0:
            self.hit = op
            if self._code == 0:
                return 1
            if self._code > 0:
                self._left = -1
                self._fail(op)
            return None
        self._left -= 1
        return None

    def after(self, op: Op) -> None:
        if self.hit is not None and self._left == 0:
            self._left = -1
            if self._code == -1:
                self._code = errno.EIO
                self._fail(op)

    def _fail(self, op: Op) -> None:
        if op.kind == "sync":
            self._failed_syncs.add(op.path)
        if op.kind == "commit":
            text = "database or disk is full" if self._code in FULL else "disk I/O error"
            raise sqlalchemy.exc.OperationalError("INSERT", {}, Exception(text))
        raise OSError(self._code, os.strerror(self._code))

    def _check_syncs(self, op: Op) -> None:
        """After a sync that failed nothing is known of a file: only another may take its place."""
        if op.kind == "remove":
            self._failed_syncs.discard(op.path)
        assert op.kind != "sync" or op.path not in self._failed_syncs, "a sync was tried again"
        assert op.source not in self._failed_syncs, "what could not be synced was published"


Call = Callable[[Services], Awaitable[object]]


async def upload(services: Services) -> None:
    """All in one stream."""

    async def messages() -> AsyncIterator[UploadAdapterRequest]:
        yield upload_header("a", PACKAGES[1])
        for message in chunks(PACKAGES[1]):
            yield message

    await services.adapters.UploadAdapter(messages(), CONTEXT)


async def resume(services: Services) -> None:
    """Begun, brought and finished by calls of their own."""
    upload_id = await services.send("a", PACKAGES[1])
    await services.finish(upload_id)


async def adopt(services: Services) -> None:
    """Content that is here under another name."""
    if upload_id := await services.send("a", PACKAGES[2]):
        await services.finish(upload_id)


async def delete(services: Services) -> None:
    await services.adapters.DeleteAdapter(DeleteAdapterRequest(name="a:1"), CONTEXT)


async def move(services: Services) -> None:
    request = SetAliasRequest(name="a", alias="stable", split=Split(weights={1: 1}))
    await services.aliases.SetAlias(request, CONTEXT)


AFTER: dict[Call, Callable[[RegistryModel], object]] = {
    upload: lambda model: model.upload("a", 1),
    resume: lambda model: model.upload("a", 1),
    adopt: lambda model: model.upload("a", 2),
    delete: lambda model: model.delete("a", 1),
    move: lambda model: model.set_alias("a", "stable", {1: 1}),
}
"""Call -> what it leads to."""


class Case:
    """A registry in which `a` has a version and `b` has another."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.fault = Fault()
        self.registry = seen_registry(folder, self.fault)
        self.services = Services(self.registry, InstantEngine())
        self.model = RegistryModel()

    async def prepare(self) -> None:
        for name, number in (("a", 0), ("b", 2)):
            upload_id = await self.services.send(name, PACKAGES[number])
            await self.services.finish(upload_id)
            self.model.upload(name, number)

    def close(self) -> None:
        self.services.uploads.close()
        self.registry.close()


@pytest.fixture
def make(disk: Path) -> Iterator[Callable[[], Awaitable[Case]]]:
    cases: list[Case] = []

    async def make() -> Case:
        cases.append(Case(disk / str(len(cases))))
        await cases[-1].prepare()
        return cases[-1]

    yield make
    for case in cases:
        case.close()


async def error_of(call: Awaitable[object]) -> LoramuxError | None:
    """Return how a call failed, if it did."""
    try:
        await call
    except LoramuxError as error:
        return error
    return None


async def operations(make: Callable[[], Awaitable[Case]], call: Call) -> list[Op]:
    """Return what a call does when nothing fails."""
    case = await make()
    case.fault.arm(-1, 0)
    await call(case.services)
    return case.fault.ops


@pytest.mark.parametrize("call", AFTER, ids=lambda call: call.__name__)
@pytest.mark.parametrize("code", CODES, ids=errno.errorcode.get)
async def test_a_fault_gives_the_right_status_and_leaves_nothing_partial(
    make: Callable[[], Awaitable[Case]], call: Call, code: int
) -> None:
    for index in range(len(await operations(make, call))):
        case = await make()
        after = case.model.copy()
        AFTER[call](after)
        case.fault.arm(index, code)
        error = await error_of(call(case.services))
        assert case.fault.hit is not None
        if error is None:
            # What Python itself tries again is no fault.
            is_harmless = case.fault.hit.kind in TOLERATED or code == errno.EINTR
            assert is_harmless, f"{case.fault.hit} failed, and nobody noticed"
        else:
            assert type(error) is (ResourceExhaustedError if code in FULL else UnavailableError)
            assert error.reason == ("STORE_FULL" if code in FULL else "STORE_UNAVAILABLE")
            assert error.retry_delay
            assert found_in(case.registry) == case.model
            # It goes on as if nothing had been.
            await call(case.services)
        assert found_in(case.registry) == after
        check_quotas(case.registry, after)
        case.close()
        check_reopened(case.folder, after)


def check_reopened(folder: Path, model: RegistryModel) -> None:
    """Demand that a next server finds this and nothing else."""
    registry = Registry(folder)
    try:
        assert found_in(registry) == model
        check_files(folder, model)
        # Uploads that can go on stay until they are too old.
        assert {path.suffix for path in (folder / "staging").iterdir()} <= {".upload"}
    finally:
        registry.close()


@pytest.mark.parametrize("call", AFTER, ids=lambda call: call.__name__)
async def test_short_writes_are_gone_on_with(
    make: Callable[[], Awaitable[Case]], call: Call
) -> None:
    ops = await operations(make, call)
    for index in (i for i, op in enumerate(ops) if op.kind == "write"):
        case = await make()
        case.fault.arm(index, 0)
        await call(case.services)
        assert case.fault.hit is not None
        AFTER[call](case.model)
        assert found_in(case.registry) == case.model
        check_files(case.folder, case.model)


@pytest.mark.parametrize("call", AFTER, ids=lambda call: call.__name__)
async def test_a_commit_whose_answer_is_lost_is_found_out(
    make: Callable[[], Awaitable[Case]], call: Call
) -> None:
    ops = await operations(make, call)
    for index in (i for i, op in enumerate(ops) if op.kind == "commit"):
        case = await make()
        case.fault.arm(index, -1)
        with pytest.raises(UnavailableError):
            await call(case.services)
        # Nobody knows yet. The next change finds out, and the bytes are there then.
        after = case.model.copy()
        AFTER[call](after)
        upload_id = await case.services.send("c", PACKAGES[3])
        await case.services.finish(upload_id)
        after.upload("c", 3)
        assert found_in(case.registry) == after
        check_quotas(case.registry, after)
        check_files(case.folder, after)
        case.close()
        check_reopened(case.folder, after)


async def test_a_start_that_fails_is_as_good_as_none(
    make: Callable[[], Awaitable[Case]],
) -> None:
    case = await make()
    left = case.registry.stage()
    left.write(PACKAGES[3])
    left.file.close()
    case.close()
    fault = Fault()
    seen_registry(case.folder, fault).close()
    num_ops = len(fault.ops)
    for code in CODES:
        for index in range(num_ops):
            left.path.write_bytes(PACKAGES[3])
            fault.arm(index, code)
            with pytest.raises(OSError, match=os.strerror(code)):
                seen_registry(case.folder, fault)
        fault.arm(-1, 0)
    check_reopened(case.folder, case.model)


async def test_bytes_that_are_gone_are_a_loss_of_data(
    make: Callable[[], Awaitable[Case]],
) -> None:
    case = await make()
    digest = hashlib.sha256(PACKAGES[0]).hexdigest()
    case.registry.blobs.path(f"sha256:{digest}").unlink()
    answers = case.services.adapters.DownloadAdapter(DownloadAdapterRequest(name="a"), CONTEXT)
    await anext(answers)
    with pytest.raises(LoramuxError) as caught:
        await anext(answers)
    assert (caught.value.code, caught.value.reason) == (
        grpc.StatusCode.DATA_LOSS, "ADAPTER_DAMAGED",
    )  # fmt: skip
