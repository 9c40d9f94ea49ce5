import errno
import hashlib
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from blake3 import blake3

from loramux_server.hashes import Digest, Hash, Seal
from loramux_server.lora import streaming_file
from loramux_server.lora.streaming_file import Reader, Seals

CONTENT = os.urandom((5 << 20) + 3)


@pytest.fixture(autouse=True)
def seals(monkeypatch: pytest.MonkeyPatch) -> Seals:
    """Those of a process that has read nothing."""
    seals = Seals()
    monkeypatch.setattr(Reader, "seals", seals)
    return seals


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def seal_of(data: bytes) -> str:
    return f"blake3:{blake3(data).hexdigest()}"


def hashes_of(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the hashes that are begun from now on."""
    begun: list[str] = []

    def noting(kind: type[Digest] | type[Seal]) -> Callable[[], Hash]:
        def make() -> Hash:
            begun.append(kind.__name__)
            return kind()

        return make

    for kind in (Digest, Seal):
        monkeypatch.setattr(streaming_file, kind.__name__, noting(kind))
    return begun


@pytest.mark.parametrize("text", [digest_of, seal_of])
def test_a_hash_does_not_depend_on_the_pieces(text: Callable[[bytes], str]) -> None:
    hashed: Hash = Digest() if text is digest_of else Seal()
    for begin in range(0, len(CONTENT), 700_001):
        hashed.update(memoryview(CONTENT)[begin : begin + 700_001])
    assert hashed.text() == text(CONTENT)


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
        patch.setattr(streaming_file, "yield_cpu", fail)  # after the first piece
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
    path, reader, updated = tmp_path / "file", Reader(), []
    is_in_the_way = reader._is_in_the_way  # another thread has another
    helper = reader._helper.submit(threading.get_ident).result()
    has_begun = threading.Event()
    path.write_bytes(CONTENT)

    class Slow:
        def update(self, data: memoryview) -> None:
            if threading.get_ident() != helper:  # what a test before this one has left to do
                return
            updated.append(len(data))
            has_begun.set()
            assert is_in_the_way.wait(30)

        def text(self) -> str:
            return ""

    monkeypatch.setattr(streaming_file, "Seal", Slow)
    with reader.reading(path, digest_of(CONTENT)) as file:
        assert file.is_right()
    assert has_begun.wait(30)
    with reader.reading(path, digest_of(CONTENT)) as file:
        assert updated == [1 << 20]  # of six pieces, and no more is done
        assert seals.get(digest_of(CONTENT)) is None
        assert file.is_right()


@pytest.mark.parametrize("place", [0, 3 << 20, len(CONTENT) - 1])
@pytest.mark.parametrize("times_before", [0, 1, 2])
def test_other_bytes_are_reported_the_first_time_and_each_time_after(
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


@pytest.mark.parametrize("place", [0, 3 << 20, len(CONTENT) - 1])
@pytest.mark.parametrize(
    "seal", [seal_of(CONTENT), seal_of(b""), "another:0"], ids=["right", "wrong", "unheard-of"]
)
def test_other_bytes_are_reported_whatever_seal_came_with_them(
    seal: str, place: int, tmp_path: Path, seals: Seals
) -> None:
    path, reader, digest = tmp_path / "file", Reader(), digest_of(CONTENT)
    flipped = bytearray(CONTENT)
    flipped[place] ^= 1
    for wrong in (bytes(flipped), CONTENT[:-1], CONTENT + b"0"):
        path.write_bytes(wrong)
        with reader.reading(path, digest, seal) as file:
            assert not file.is_right()
    ended(reader)
    assert seals.take() == {}


def test_what_has_its_seal_is_known_by_that_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seals: Seals
) -> None:
    path, digest, reader = tmp_path / "file", digest_of(CONTENT), Reader()
    path.write_bytes(CONTENT)
    begun = hashes_of(monkeypatch)
    with reader.reading(path, digest, seal_of(CONTENT)) as file:
        assert file.is_right()
    ended(reader)
    assert begun == ["Seal"]
    assert seals.take() == {}  # nobody needs to be told


def test_what_came_without_a_seal_gets_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seals: Seals
) -> None:
    path, digest = tmp_path / "file", digest_of(CONTENT)
    path.write_bytes(CONTENT)
    begun = hashes_of(monkeypatch)
    for reader in (Reader(), Reader()):
        with reader.reading(path, digest) as file:
            assert file.is_right()
        ended(reader)
    assert begun == ["Digest", "Seal", "Seal"]
    assert [seals.take(), seals.take()] == [{digest: seal_of(CONTENT)}, {}]


@pytest.mark.parametrize(
    "wrong", [seal_of(b""), digest_of(CONTENT), "another:0"], ids=["seal", "digest", "unheard-of"]
)
def test_a_wrong_seal_costs_time_and_is_put_right(
    wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seals: Seals
) -> None:
    path, digest, reader = tmp_path / "file", digest_of(CONTENT), Reader()
    path.write_bytes(CONTENT)
    begun = hashes_of(monkeypatch)
    for _ in range(2):
        with reader.reading(path, digest, wrong) as file:
            assert file.is_right()
        ended(reader)
    assert begun == ["Seal", "Digest", "Seal"]  # what was found here goes before what came
    assert seals.take() == {digest: seal_of(CONTENT)}


def test_there_are_only_so_many_seals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming_file, "_MAX_SEALS", 2)
    seals = Seals()
    for number in range(3):
        seals.put(str(number), f"blake3:{number}")
    assert [seals.get(str(number)) for number in range(3)] == [None, "blake3:1", "blake3:2"]
