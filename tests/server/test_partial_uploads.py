"""Uploads that take several attempts: what is kept, for how long, and across a restart."""

import errno
import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from loramux.errors import (
    AlreadyExistsError,
    InvalidArgumentError,
    NotFoundError,
    OutOfRangeError,
    ResourceExhaustedError,
)
from loramux_adapters import read_package
from loramux_server.store.registry import Registry
from loramux_server.store.uploads import Uploads
from tests.support.packages import publish, small_package

PACKAGE = small_package(0)
DIGEST = f"sha256:{hashlib.sha256(PACKAGE).hexdigest()}"
HALF = len(PACKAGE) // 2


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    registry = Registry(tmp_path)
    yield registry
    registry.close()


@pytest.fixture
def uploads(registry: Registry) -> Iterator[Uploads]:
    uploads = Uploads(registry, expiry=100)
    yield uploads
    uploads.close()


def staged(folder: Path) -> list[Path]:
    return list((folder / "staging").iterdir())


def test_who_declares_the_same_goes_on_where_it_is(uploads: Uploads) -> None:
    upload = uploads.start("a", DIGEST, len(PACKAGE))
    assert uploads.write(upload, 0, PACKAGE[:HALF]) == HALF
    again = uploads.start("a", DIGEST, len(PACKAGE))
    assert (again.id, again.staged.size) == (upload.id, HALF)
    # What is here is passed over, and what is missing may not be left out.
    assert uploads.write(again, HALF - 10, PACKAGE[HALF - 10 : HALF + 10]) == HALF + 10
    assert uploads.write(again, 0, PACKAGE[:HALF]) == HALF + 10
    with pytest.raises(OutOfRangeError, match=f"{HALF + 10} bytes were received"):
        uploads.write(again, HALF + 11, PACKAGE[HALF + 11 :])
    uploads.write(again, HALF + 10, PACKAGE[HALF + 10 :])
    assert again.is_complete
    assert again.staged.digest == DIGEST
    for name, digest, size in (("b", DIGEST, 9), ("a", DIGEST, 9), ("a", DIGEST[:-1] + "0", 9)):
        assert uploads.start(name, digest, size).staged.size == 0


def test_an_upload_goes_on_after_a_crash(
    registry: Registry, uploads: Uploads, tmp_path: Path
) -> None:
    upload = uploads.start("a", DIGEST, len(PACKAGE))
    uploads.write(upload, 0, PACKAGE[:HALF])
    registry.close()
    again = Registry(tmp_path)
    next_uploads = Uploads(again, expiry=100)
    resumed = next_uploads.start("a", DIGEST, len(PACKAGE))
    assert resumed.staged.size == HALF
    resumed.staged.write(PACKAGE[HALF:])
    assert resumed.staged.digest == DIGEST
    next_uploads.close()
    again.close()


def test_too_many_at_once_put_aside_the_one_that_waits_longest(
    uploads: Uploads, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loramux_server.store.uploads.MAX_UPLOADS", 2)
    first, second = (uploads.start(name, DIGEST, len(PACKAGE)) for name in ("a", "b"))
    uploads.write(second, 0, PACKAGE[:HALF])
    first.is_finishing = True
    uploads.start("c", DIGEST, len(PACKAGE))
    assert (uploads.has(first.id), uploads.has(second.id)) == (True, False)
    # Its bytes are there when it goes on.
    assert uploads.start("b", DIGEST, len(PACKAGE)).staged.size == HALF
    third = uploads.start("b", DIGEST, len(PACKAGE))
    with third.lock, pytest.raises(ResourceExhaustedError, match="2 uploads") as caught:
        uploads.start("d", DIGEST, len(PACKAGE))
    assert caught.value.reason == "TOO_MANY_UPLOADS"


def test_who_was_put_aside_has_to_begin_again(uploads: Uploads) -> None:
    upload = uploads.start("a", DIGEST, len(PACKAGE))
    uploads.close()  # as when there are too many
    again = uploads.start("a", DIGEST, len(PACKAGE))
    with pytest.raises(NotFoundError, match="begin with StartUpload again"):
        uploads.write(upload, 0, PACKAGE)
    uploads.end(upload)
    assert uploads.write(again, 0, PACKAGE) == len(PACKAGE)


def test_a_second_try_to_publish_holds_the_bytes_once(
    registry: Registry, uploads: Uploads, tmp_path: Path
) -> None:
    upload = uploads.start("a", DIGEST, len(PACKAGE))
    uploads.write(upload, 0, PACKAGE)
    checked = read_package(upload.staged.file, upload.size)
    for _ in range(2):  # the engine was away the first time
        record = registry.publish("a", upload.staged, checked)
    registry.register(record)
    uploads.end(upload)
    registry.delete("a")
    assert list((tmp_path / "blobs").glob("*/*")) == []


def test_what_is_put_aside_after_a_try_to_publish_holds_its_file_only(
    registry: Registry, uploads: Uploads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = uploads.start("a", DIGEST, len(PACKAGE))
    uploads.write(upload, 0, PACKAGE)
    registry.publish("a", upload.staged, read_package(upload.staged.file, upload.size))
    monkeypatch.setattr("loramux_server.store.uploads.MAX_UPLOADS", 1)
    uploads.start("b", DIGEST, len(PACKAGE))
    assert len(registry.leases) == 0
    assert list((tmp_path / "blobs").glob("*/*")) == []
    assert uploads.start("a", DIGEST, len(PACKAGE)).is_complete


def test_what_is_declared_again_is_not_finished(registry: Registry, uploads: Uploads) -> None:
    record = publish(registry, "a", PACKAGE)
    upload = uploads.start("a", DIGEST, len(PACKAGE))
    uploads.end(upload, (record, True))
    assert uploads.finished(upload.id) == (record, True)
    registry.delete("a")
    assert uploads.start("a", DIGEST, len(PACKAGE)).id == upload.id
    assert uploads.finished(upload.id) is None


def test_the_results_of_the_latest_uploads_are_known(
    registry: Registry, uploads: Uploads, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loramux_server.store.uploads._REMEMBERED", 2)
    record = publish(registry, "a", PACKAGE)
    ended = [uploads.start(name, DIGEST, len(PACKAGE)) for name in ("b", "c", "d")]
    for upload in ended:
        uploads.end(upload, (record, True))
    known = [uploads.finished(upload.id) for upload in ended]
    assert known == [None, (record, True), (record, True)]


def test_an_upload_ends_once(registry: Registry, uploads: Uploads) -> None:
    upload = uploads.start("a", DIGEST, len(PACKAGE))
    uploads.end(upload)
    uploads.end(upload, (publish(registry, "a", PACKAGE), True))
    assert uploads.finished(upload.id) is None


def test_a_file_that_is_too_long_begins_anew(uploads: Uploads, tmp_path: Path) -> None:
    upload = uploads.start("a", DIGEST, len(PACKAGE))
    uploads.end(upload)
    (tmp_path / "staging" / f"{upload.id}.upload").write_bytes(bytes(len(PACKAGE) + 1))
    assert uploads.start("a", DIGEST, len(PACKAGE)).staged.size == 0


def test_what_nobody_goes_on_with_is_deleted(
    registry: Registry, uploads: Uploads, tmp_path: Path
) -> None:
    old = uploads.start("old", DIGEST, len(PACKAGE))
    young = uploads.start("young", DIGEST, len(PACKAGE))
    uploads.expire()
    assert len(staged(tmp_path)) == 2
    old.touched -= 101
    left = tmp_path / "staging" / "0.upload"  # by a server before this one
    left.touch()
    os.utime(left, (time.time() - 101,) * 2)
    uploads.expire()
    assert staged(tmp_path) == [young.staged.path]
    with pytest.raises(NotFoundError) as caught:
        uploads.get(old.id)
    assert (caught.value.reason, caught.value.field) == ("UPLOAD_NOT_FOUND", "upload_id")


def test_a_write_that_fails_loses_nothing_that_was_there(
    uploads: Uploads, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = uploads.start("a", DIGEST, len(PACKAGE))
    uploads.write(upload, 0, PACKAGE[:HALF])

    def fail(piece: bytes) -> None:
        upload.staged.file.write(piece[:7])
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(type(upload.staged), "write", lambda self, piece: fail(piece))
    with pytest.raises(OSError, match="Input/output"):
        uploads.write(upload, HALF, PACKAGE[HALF:])
    monkeypatch.undo()
    again = uploads.start("a", DIGEST, len(PACKAGE))
    assert HALF <= again.staged.size <= HALF + 7
    uploads.write(again, HALF, PACKAGE[HALF:])
    assert again.staged.digest == DIGEST


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_what_does_not_fit_the_store_takes_no_room_of_it(
    uploads: Uploads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    upload = uploads.start("a", DIGEST, len(PACKAGE))
    uploads.write(upload, 0, PACKAGE[:HALF])

    def fail(self: object, piece: bytes) -> None:
        raise OSError(code, "no room")

    with monkeypatch.context() as broken:
        broken.setattr(type(upload.staged), "write", fail)
        with pytest.raises(OSError, match="no room"):
            uploads.write(upload, HALF, PACKAGE[HALF:])
    assert staged(tmp_path) == []
    with pytest.raises(NotFoundError):
        uploads.get(upload.id)
    again = uploads.start("a", DIGEST, len(PACKAGE))
    uploads.write(again, 0, PACKAGE)
    assert again.staged.digest == DIGEST


def test_what_is_no_name_is_refused_before_anything_is_looked_for(uploads: Uploads) -> None:
    with pytest.raises(InvalidArgumentError, match="without tag and digest") as caught:
        uploads.adopt("a:1", DIGEST, must_not_exist=False)
    assert caught.value.field == "header.name"


def test_known_content_is_registered_without_its_bytes(
    registry: Registry, uploads: Uploads
) -> None:
    first = publish(registry, "a", PACKAGE)
    assert uploads.adopt("a", DIGEST, must_not_exist=True) == (first, False)
    adopted = uploads.adopt("b", DIGEST, must_not_exist=False)
    assert adopted is not None
    assert (adopted[0].full_name, adopted[0].version, adopted[1]) == ("b", 1, True)
    assert adopted[0].digest == DIGEST
    publish(registry, "c", small_package(1))
    with pytest.raises(AlreadyExistsError):
        uploads.adopt("c", DIGEST, must_not_exist=True)


def test_what_is_unknown_damaged_or_of_another_tenant_is_sent(
    registry: Registry, uploads: Uploads
) -> None:
    assert uploads.adopt("a", DIGEST, must_not_exist=False) is None
    record = publish(registry, "a", PACKAGE)
    assert uploads.adopt("team/a", DIGEST, must_not_exist=False) is None
    Path(registry.source_of(record).path).write_bytes(PACKAGE[:-1] + b"x")
    assert uploads.adopt("b", DIGEST, must_not_exist=False) is None
