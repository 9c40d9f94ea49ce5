import errno
import hashlib
import os
import threading
from pathlib import Path

import pytest

from loramux_server.lora import arriving
from loramux_server.lora.arriving import Reader, Seals

CONTENT = os.urandom((5 << 20) + 3)


@pytest.fixture(autouse=True)
def seals(monkeypatch: pytest.MonkeyPatch) -> Seals:
    """Those of a process that has read nothing."""
    seals = Seals()
    monkeypatch.setattr(Reader, "seals", seals)
    return seals


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def test_bytes_can_be_used_before_all_are_there(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    opened: list[int] = []
    thread = threading.Thread(target=lambda: opened.append(os.open(path, os.O_WRONLY)))
    thread.start()
    # A FIFO has no size of its own: it is told where its reader asks.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fstat", lambda _: os.stat_result((0, 0, 0, 0, 0, 0, 8, 0, 0, 0)))
        patch.delattr(os, "posix_fadvise")
        with Reader().reading(path, digest_of(b"headrest")) as file:
            thread.join()
            os.write(opened[0], b"head")
            assert bytes(file[:4]) == b"head"
            assert not file.reading.done()
            os.write(opened[0], b"rest")
            os.close(opened[0])
            assert bytes(file[2:8]) == b"adrest"
            assert file.is_right()


def test_a_file_is_read_whole_and_its_room_is_used_again(tmp_path: Path) -> None:
    reader = Reader()
    for content in (CONTENT, CONTENT[::-1], CONTENT[:10], b""):
        (tmp_path / "file").write_bytes(content)
        with reader.reading(tmp_path / "file", digest_of(content)) as file:
            assert len(file) == len(content)
            assert file[:] == content
            assert file[7 : 2 << 20] == content[7 : 2 << 20]
            assert file[: 1 << 40] == content
            assert file.is_right()


def test_what_a_file_lacks_is_not_made_up(tmp_path: Path) -> None:
    """Another process cut it since it was opened."""
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fstat", lambda _: os.stat_result((0, 0, 0, 0, 0, 0, 6 << 20, 0, 0, 0)))
        with Reader().reading(path, digest_of(CONTENT)) as file:
            assert file[:] == CONTENT
            assert file[5 << 20 : 6 << 20] == CONTENT[5 << 20 :]
            assert file.is_right()


def test_an_error_of_the_disk_reaches_who_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    reader = Reader()

    def fail() -> None:
        raise OSError(errno.EIO, "injected")

    with monkeypatch.context() as patch:
        patch.setattr(arriving, "give_way", fail)  # after the first piece
        with reader.reading(path, digest_of(CONTENT)) as file:
            assert bytes(file[:9]) == CONTENT[:9]
            with pytest.raises(OSError, match="injected"):
                file[:]
            with pytest.raises(OSError, match="injected"):
                file.is_right()
    with reader.reading(path, digest_of(CONTENT)) as file:  # and the next file is read as ever
        assert file.is_right()


def ended(reader: Reader) -> None:
    """Wait for what goes on after a file was read."""
    reader._helper.submit(int).result()


def test_a_file_that_follows_does_not_wait_for_a_seal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seals: Seals
) -> None:
    path, reader, may_go_on, updated = tmp_path / "file", Reader(), threading.Event(), []
    path.write_bytes(CONTENT)

    class Slow:
        def update(self, data: memoryview) -> None:
            updated.append(len(data))
            may_go_on.wait(5)

    monkeypatch.setattr(arriving, "blake3", Slow)
    with reader.reading(path, digest_of(CONTENT)) as file:
        assert file.is_right()
    threading.Timer(0.2, may_go_on.set).start()
    with reader.reading(path, digest_of(CONTENT)) as file:
        assert updated == [1 << 20]  # of six pieces, and no more is done
        assert seals.get(digest_of(CONTENT)) is None
        assert file.is_right()


@pytest.mark.parametrize("place", [0, 3 << 20, len(CONTENT) - 1])
@pytest.mark.parametrize("times_before", [0, 1, 2])
def test_other_bytes_are_told_the_first_time_and_each_time_after(
    times_before: int, place: int, tmp_path: Path, seals: Seals
) -> None:
    path, reader, digest = tmp_path / "file", Reader(), digest_of(CONTENT)

    def is_right(content: bytes) -> bool:
        path.write_bytes(content)
        with reader.reading(path, digest) as file:
            right = file.is_right()
        ended(reader)
        return right

    for _ in range(times_before):
        assert is_right(CONTENT)
    assert (seals.get(digest) is not None) == (times_before > 0)
    flipped = bytearray(CONTENT)
    flipped[place] ^= 1
    for wrong in (bytes(flipped), CONTENT[:-1], CONTENT + b"0", b""):
        assert not is_right(wrong)
    assert is_right(CONTENT)


def test_what_was_read_before_is_not_hashed_in_the_slow_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, digest, reader = tmp_path / "file", digest_of(CONTENT), Reader()
    path.write_bytes(CONTENT)
    with reader.reading(path, digest) as file:
        assert file.is_right()
    ended(reader)
    monkeypatch.delattr(hashlib, "sha256")
    with Reader().reading(path, digest) as file:
        assert file.is_right()


def test_there_are_only_so_many_seals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arriving, "_MAX_SEALS", 2)
    seals = Seals()
    for number in range(3):
        seals.put(str(number), bytes([number]))
    assert [seals.get(str(number)) for number in range(3)] == [None, b"\x01", b"\x02"]
