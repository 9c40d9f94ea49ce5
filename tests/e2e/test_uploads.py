"""Uploads and what becomes of them, over the real socket.

Ids are those of group C of the corpus; C13, C17 and C18 are in test_resumed_uploads.py. The server
has no such thing for the rows that are missing here: C15 a floor of the rate; C19 to C21 callers
and quotas of tenants; C27 generations; C28 idempotency keys. C22-C24 need faults of the disk, C29
tenants' deletes.
"""

import datetime
import hashlib
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from safetensors.torch import load_file, save_file

from loramux import Client
from loramux.errors import (
    AlreadyExistsError,
    DataLossError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
)
from loramux.v1.adapters_pb2 import ListAdaptersRequest, UploadAdapterRequest
from loramux.v1.adapters_pb2_grpc import AdapterServiceStub
from loramux_adapters import pack
from loramux_server.models.decoder_model import prepare
from loramux_server.store.catalog import Catalog
from loramux_server.store.registry import Registry
from tests.support.adapters import save_adapter
from tests.support.models import tiny_model
from tests.support.polling import eventually
from tests.support.server import RunningServer
from tests.support.unread import held
from tests.support.wire import chunks, refusal, upload_header

ROWS = 32
"""Rank rows that the adapter memory of the server holds."""
MAX_UPLOAD = 8 << 20
IDLE_SECONDS = 3
GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": 12, "ignore_eos": True}
LONG: dict[str, Any] = {**GREEDY, "max_tokens": 500}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """PEFT folders by name."""
    folder = tmp_path_factory.mktemp("peft")
    model = tiny_model("llama", vocab_size=259)
    narrow: dict[str, Any] = {"r": 4, "target_modules": ["q_proj", "v_proj"]}
    wide: dict[str, Any] = {"r": 24, "target_modules": "all-linear"}
    configs = {"one": narrow, "two": narrow, "three": narrow, "wide": wide, "provided": narrow}
    return {
        name: save_adapter(model, folder / name, seed=seed, **config)
        for seed, (name, config) in enumerate(configs.items())
    }


@pytest.fixture(scope="module")
def packages(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same adapters, packed."""
    folder = tmp_path_factory.mktemp("packages")
    for name, source in folders.items():
        with (folder / name).open("wb") as output:
            pack(source, output)
    return {name: folder / name for name in folders}


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, roomy_base: Path, folders: dict[str, Path]
) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("server")
    shutil.copytree(folders["provided"], folder / "adapters" / "provided")
    groups = prepare(tiny_model("llama", vocab_size=259)).groups
    row_bytes = 4 * sum(group.shape.row_weights for group in groups)
    with RunningServer(
        folder, roomy_base, "--adapters", str(folder / "adapters"), "--max-running", "16",
        "--adapter-memory", str(ROWS * row_bytes), "--max-upload", str(MAX_UPLOAD),
        "--upload-idle-timeout", str(IDLE_SECONDS),
    ) as server:  # fmt: skip
        yield server


@pytest.fixture
def client(server: RunningServer) -> Iterator[Client]:
    with server.client() as client:
        yield client
        # Whatever a test did, the others find what they expect.
        for adapter in client.adapters.list():
            if adapter.source == "upload":
                client.adapters.delete(adapter.name)


@pytest.fixture
def service(server: RunningServer) -> Iterator[AdapterServiceStub]:
    with grpc.insecure_channel(server.target) as channel:
        yield AdapterServiceStub(channel)


def store_of(server: RunningServer) -> Path:
    return server.log.parent / "store"


def blob_of(server: RunningServer, digest: str) -> Path:
    hexadecimal = digest.removeprefix("sha256:")
    return store_of(server) / "blobs" / hexadecimal[:2] / hexadecimal


def staged(server: RunningServer) -> list[Path]:
    return list((store_of(server) / "staging").iterdir())


def digest_of(package: Path) -> str:
    return f"sha256:{hashlib.sha256(package.read_bytes()).hexdigest()}"


# What the client does


@pytest.mark.parametrize("kind", ["folders", "packages"])
def test_an_upload_answers_at_once(
    client: Client, kind: str, folders: dict[str, Path], packages: dict[str, Path]
) -> None:
    before = datetime.datetime.now(datetime.UTC)
    steps: list[tuple[int, int]] = []
    path = {"folders": folders, "packages": packages}[kind]["wide"]
    adapter = client.adapters.upload("mine", path, progress=lambda *step: steps.append(step))
    size = packages["wide"].stat().st_size
    assert steps[-1] == (size, size)
    assert [sent for sent, _ in steps] == sorted({sent for sent, _ in steps})
    assert (adapter.name, adapter.digest) == ("mine", digest_of(packages["wide"]))
    assert (adapter.size_bytes, adapter.rank, adapter.source) == (size, 24, "upload")
    assert adapter.target_modules == (
        "down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj",
    )  # fmt: skip
    assert before <= adapter.created_at <= datetime.datetime.now(datetime.UTC)
    done = client.generate("hello", adapter="mine", **GREEDY)
    assert done.adapter is not None
    assert done.adapter.digest == adapter.digest
    assert done.token_ids != client.generate("hello", **GREEDY).token_ids
    assert client.adapters.get("mine").tier == "device"


def test_an_uploaded_adapter_answers_as_one_from_the_directory(
    client: Client, folders: dict[str, Path]
) -> None:
    provided = client.generate("hello", adapter="provided", **GREEDY)
    client.adapters.upload("copy", folders["provided"])
    copied = client.generate("hello", adapter="copy", **GREEDY)
    assert copied.token_ids == provided.token_ids
    assert client.adapters.get("copy").digest == client.adapters.get("provided").digest
    client.adapters.delete("copy")
    # One content, two names: what is left of them still answers.
    assert client.generate("hello", adapter="provided", **GREEDY).token_ids == provided.token_ids


def test_a_deleted_adapter_is_not_found(client: Client, folders: dict[str, Path]) -> None:
    client.adapters.upload("gone", folders["one"])
    client.adapters.delete("gone")
    for call, field in [
        (lambda: client.generate("hello", adapter="gone"), "adapter"),
        (lambda: list(client.stream("hello", adapter="gone")), "adapter"),
        (lambda: client.adapters.get("gone"), "name"),
        (lambda: client.adapters.delete("gone"), "name"),
    ]:
        with pytest.raises(NotFoundError, match="'gone'") as caught:
            call()
        assert (caught.value.reason, caught.value.field) == ("ADAPTER_NOT_FOUND", field)
    assert [adapter.name for adapter in client.adapters.list()] == ["provided"]


def test_lists_come_in_pages(
    client: Client, service: AdapterServiceStub, folders: dict[str, Path]
) -> None:
    names = [f"a{number}" for number in range(6)]
    for name in reversed(names):
        client.adapters.upload(name, folders["one"])

    def pages(size: int) -> list[list[str]]:
        found, token = [], ""
        while True:
            page = service.ListAdapters(ListAdaptersRequest(page_size=size, page_token=token))
            found.append([adapter.name for adapter in page.adapters])
            token = page.next_page_token
            if not token:
                return found

    assert pages(3) == [["a0", "a1", "a2"], ["a3", "a4", "a5"], ["provided"]]
    assert pages(7) == pages(0) == pages(10**9) == [[*names, "provided"]]
    assert [adapter.name for adapter in client.adapters.list()] == [*names, "provided"]
    after = service.ListAdapters(ListAdaptersRequest(page_size=1, page_token="a2.deleted"))
    assert [adapter.name for adapter in after.adapters] == ["a3"]
    for request, field in [
        (ListAdaptersRequest(page_size=-1), "page_size"),
        (ListAdaptersRequest(page_token="Forged!"), "page_token"),
    ]:
        with pytest.raises(grpc.RpcError) as caught:
            service.ListAdapters(request)
        refused = refusal(caught.value)
        assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
        assert (refused.reason, refused.field) == ("INVALID_FIELD", field)


def test_a_stream_finishes_with_an_adapter_that_is_deleted_meanwhile(
    server: RunningServer, client: Client, folders: dict[str, Path]
) -> None:
    digest = client.adapters.upload("short-lived", folders["one"]).digest
    alone = client.generate("hello", adapter="short-lived", **LONG)
    with held(server.target, LONG["max_tokens"], adapter="short-lived") as stream:
        client.adapters.delete("short-lived")
        with pytest.raises(NotFoundError):
            client.generate("hello", adapter="short-lived")
        assert blob_of(server, digest).exists()
        stream.read()
    assert tuple(stream.tokens[0]) == alone.token_ids
    # Nobody names it or uses it any more.
    assert eventually(lambda: not blob_of(server, digest).exists())


def test_new_content_is_for_new_requests(client: Client, folders: dict[str, Path]) -> None:
    old = client.adapters.upload("changing", folders["one"]).digest
    alone = client.generate("hello", adapter="changing", **LONG)
    stream = client.stream("hello", adapter="changing", **LONG)
    first = next(stream)
    new = client.adapters.upload("changing", folders["two"]).digest
    after = client.generate("hello", adapter="changing", **GREEDY)
    rest = list(stream)
    assert first.adapter is not None
    assert after.adapter is not None
    assert (first.adapter.digest, after.adapter.digest) == (old, new)
    assert old != new
    assert sum((chunk.token_ids for chunk in rest), first.token_ids) == alone.token_ids
    assert after.token_ids != alone.token_ids[:12]


def test_what_the_directory_provides_is_read_only(client: Client, folders: dict[str, Path]) -> None:
    before = client.adapters.get("provided")
    for call, field in [
        (lambda: client.adapters.upload("provided", folders["one"]), "header.name"),
        (lambda: client.adapters.upload("provided", folders["provided"]), "header.name"),
        (lambda: client.adapters.delete("provided"), "name"),
    ]:
        with pytest.raises(FailedPreconditionError, match="'provided'") as caught:
            call()
        assert (caught.value.reason, caught.value.field) == ("ADAPTER_READ_ONLY", field)
    assert client.adapters.get("provided") == before


def test_the_same_content_again_exists_already(
    service: AdapterServiceStub, client: Client, packages: dict[str, Path]
) -> None:
    """C25."""
    package = packages["one"].read_bytes()
    first, second, third = (
        service.UploadAdapter(
            iter([upload_header("same", package, must_not_exist=refuses), *chunks(package)])
        )
        for refuses in (False, False, True)
    )
    assert not first.already_existed
    assert second.already_existed
    assert third.already_existed
    assert first.adapter.created_at == second.adapter.created_at == third.adapter.created_at


def test_must_not_exist_refuses_other_content(client: Client, folders: dict[str, Path]) -> None:
    """C26."""
    old = client.adapters.upload("taken", folders["one"])
    with pytest.raises(AlreadyExistsError, match="'taken'") as caught:
        client.adapters.upload("taken", folders["two"], must_not_exist=True)
    assert (caught.value.reason, caught.value.field) == ("ADAPTER_EXISTS", "header.name")
    assert client.adapters.get("taken").digest == old.digest


def test_of_many_uploads_to_one_name_one_wins_whole(
    server: RunningServer, client: Client, folders: dict[str, Path]
) -> None:
    sources = [folders[name] for name in ("one", "two", "three")] * 4
    with ThreadPoolExecutor(len(sources)) as pool:
        uploaded = list(pool.map(lambda path: client.adapters.upload("contested", path), sources))
    winner = client.adapters.get("contested")
    assert winner in uploaded
    assert client.generate("hello", adapter="contested", **GREEDY).adapter is not None
    kept = {blob.name for blob in (store_of(server) / "blobs").glob("*/*")}
    every = client.adapters.list(all_versions=True)
    named = {adapter.digest.removeprefix("sha256:") for adapter in every}
    assert kept == named


# What is refused


Messages = Callable[[bytes], list[UploadAdapterRequest]]


def declaring(name: str = "bad", **changes: object) -> Messages:
    """An upload whose header is wrong."""
    return lambda package: [upload_header(name, package, **changes), *chunks(package)]


def carrying(sent: Callable[[bytes], bytes], size: int = 64 << 10) -> Messages:
    """An upload whose bytes are not those of its header."""
    return lambda package: [upload_header("bad", package), *chunks(sent(package), size)]


def row(name: str, messages: Messages, reason: str, field: str, says: str) -> Any:
    return pytest.param(messages, reason, field, says, id=name)


BAD_UPLOADS = [
    row(
        "C01-data-first", lambda p: [*chunks(p), upload_header("bad", p)],
        "UPLOAD_PROTOCOL", "header", "the first message",
    ),
    row(
        "C01-empty-first", lambda p: [UploadAdapterRequest(), *declaring()(p)],
        "UPLOAD_PROTOCOL", "header", "the first message",
    ),
    row(
        "C02-header-twice", lambda p: [upload_header("bad", p), *declaring()(p)],
        "UPLOAD_PROTOCOL", "header", "twice",
    ),
    row("C03-nothing", lambda p: [], "UPLOAD_PROTOCOL", "header", "the first message"),
    *(
        row(
            f"C04-size-{size}", declaring(size_bytes=size),
            "INVALID_FIELD", "header.size_bytes", str(size),
        )
        for size in (0, -1, -(2**63), MAX_UPLOAD + 1, 2**63 - 1)
    ),
    row(
        "C05-a-byte-too-few", carrying(lambda p: p[:-1]),
        "UPLOAD_PROTOCOL", "header.size_bytes", "bytes were received",
    ),
    row(
        "C05-no-bytes", carrying(lambda p: b""),
        "UPLOAD_PROTOCOL", "header.size_bytes", "0 bytes were received",
    ),
    row(
        "C06-a-byte-too-many", carrying(lambda p: p + b"\0"),
        "UPLOAD_PROTOCOL", "header.size_bytes", "more bytes were received",
    ),
    row(
        "C07-other-digest", declaring(sha256="0" * 64),
        "DIGEST_MISMATCH", "header.sha256", "0" * 64,
    ),
    row(
        "C07-a-flipped-bit", carrying(lambda p: p[:-1] + bytes([p[-1] ^ 1])),
        "DIGEST_MISMATCH", "header.sha256", "digest",
    ),
    *(
        row(
            f"C08-{kind}", declaring(sha256=digest),
            "INVALID_FIELD", "header.sha256", "64 lower-case hexadecimal digits",
        )
        for kind, digest in [
            ("empty", ""), ("63-digits", "a" * 63), ("65-digits", "a" * 65),
            ("upper-case", "A" * 64), ("other-letters", "g" * 64),
            ("prefix", "sha256:" + "a" * 57),
        ]
    ),
    row(
        "C10-small-chunks", carrying(lambda p: p, size=1),
        "UPLOAD_PROTOCOL", "chunk", "less than 65536 bytes",
    ),
    row(
        "C11-large-chunk", carrying(lambda p: bytes((1 << 20) + 1), size=1 << 21),
        "UPLOAD_PROTOCOL", "chunk", "1048577 bytes",
    ),
    *(
        row(
            f"name-{name!a}", declaring(name), "INVALID_FIELD", "header.name", ascii(name)[1:20]
        )
        for name in ("", "Upper", "../../bad", "a" * 64, "bad\n")
    ),
    row(
        "no-package", lambda p: [upload_header("bad", bytes(99)), *chunks(bytes(99))],
        "INVALID_ADAPTER_FILE", "chunk", "header",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("messages", "reason", "field", "says"), BAD_UPLOADS)
def test_a_bad_upload_is_refused_and_leaves_nothing(
    server: RunningServer, service: AdapterServiceStub, client: Client, packages: dict[str, Path],
    messages: Messages, reason: str, field: str, says: str,
) -> None:  # fmt: skip
    package = packages["wide"].read_bytes()
    assert len(package) > 64 << 10  # so that there are chunks before the last
    with pytest.raises(grpc.RpcError) as caught:
        service.UploadAdapter(iter(messages(package)))
    refused = refusal(caught.value)
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert (refused.reason, refused.field) == (reason, field)
    assert says in refused.message
    assert staged(server) == []
    assert [adapter.name for adapter in client.adapters.list()] == ["provided"]
    assert client.generate("control", max_tokens=1).token_ids


def test_empty_chunks_are_refused_after_a_few(
    service: AdapterServiceStub, server: RunningServer, packages: dict[str, Path]
) -> None:
    """C09."""
    package = packages["one"].read_bytes()
    num_sent = 0

    def messages() -> Iterator[UploadAdapterRequest]:
        nonlocal num_sent
        yield upload_header("bad", package)
        for num_sent in range(1, 1_000_001):  # noqa: B007
            yield UploadAdapterRequest(chunk=b"")

    with pytest.raises(grpc.RpcError) as caught:
        service.UploadAdapter(messages())
    refused = refusal(caught.value)
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert (refused.reason, refused.field) == ("UPLOAD_PROTOCOL", "chunk")
    assert num_sent < 1_000_000
    assert staged(server) == []


def test_a_chunk_above_4_mib_is_refused_by_the_transport(
    service: AdapterServiceStub, server: RunningServer, packages: dict[str, Path]
) -> None:
    """C12."""
    package = packages["one"].read_bytes()
    with pytest.raises(grpc.RpcError) as caught:
        service.UploadAdapter(
            iter([upload_header("bad", package), UploadAdapterRequest(chunk=bytes(4 << 20))])
        )
    assert refusal(caught.value).code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert eventually(lambda: staged(server) == [])


class Interrupted:
    """An upload that stops half way until it is told to go on, or never."""

    def __init__(self, service: AdapterServiceStub, server: RunningServer, package: bytes) -> None:
        self._go_on = threading.Event()
        first, *rest = chunks(package)
        assert rest

        def messages() -> Iterator[UploadAdapterRequest]:
            yield upload_header("interrupted", package)
            yield first
            self._go_on.wait()
            yield from rest

        before = set(staged(server))
        self.call = service.UploadAdapter.future(messages())
        assert eventually(lambda: len(set(staged(server)) - before) == 1)

    def go_on(self) -> None:
        self._go_on.set()

    def __enter__(self) -> "Interrupted":
        return self

    def __exit__(self, *_: object) -> None:
        self._go_on.set()
        self.call.cancel()


def test_an_upload_that_stalls_ends(
    service: AdapterServiceStub, server: RunningServer, client: Client, packages: dict[str, Path]
) -> None:
    """C14."""
    with (
        Interrupted(service, server, packages["wide"].read_bytes()) as upload,
        pytest.raises(grpc.RpcError) as caught,
    ):
        upload.call.result(timeout=60)
    refused = refusal(caught.value)
    assert refused.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert refused.reason == "DEADLINE_EXCEEDED"
    assert f"{IDLE_SECONDS} s" in refused.message
    assert staged(server) == []
    with pytest.raises(NotFoundError):
        client.adapters.get("interrupted")


def test_an_upload_cancelled_half_way_leaves_nothing(
    service: AdapterServiceStub, server: RunningServer, client: Client, packages: dict[str, Path]
) -> None:
    """C16."""
    with Interrupted(service, server, packages["wide"].read_bytes()) as upload:
        upload.call.cancel()
        assert upload.call.code() is grpc.StatusCode.CANCELLED
        assert eventually(lambda: staged(server) == [])  # within 1 s promised
    with pytest.raises(NotFoundError):
        client.adapters.get("interrupted")


def test_an_upload_that_pauses_briefly_succeeds(
    service: AdapterServiceStub, server: RunningServer, client: Client, packages: dict[str, Path]
) -> None:
    with Interrupted(service, server, packages["wide"].read_bytes()) as upload:
        with pytest.raises(NotFoundError):
            client.adapters.get("interrupted")
        upload.go_on()
        assert upload.call.result(timeout=60).adapter.name == "interrupted"
    assert client.generate("hello", adapter="interrupted", **GREEDY).adapter is not None


def filled(folder: Path, source: Path, value: float, *, only_one: bool = False) -> Path:
    """A copy of the PEFT folder `source` with `value` for all weights, or for one of them."""
    shutil.copytree(source, folder)
    path = folder / "adapter_model.safetensors"
    weights = load_file(path)
    for weight in weights.values():
        if only_one:
            weight[-1, -1] = value
            break
        weight.fill_(value)
    save_file(weights, path, metadata={"format": "pt"})
    return folder


def not_a_number(folder: Path, source: Path) -> Path:
    return filled(folder, source, float("nan"), only_one=True)


def infinite(folder: Path, source: Path) -> Path:
    return filled(folder, source, float("inf"), only_one=True)


def too_large(folder: Path, source: Path) -> Path:
    return filled(folder, source, 1e35, only_one=True)


def overflowing(folder: Path, source: Path) -> Path:
    return filled(folder, source, 2e29)


def of_another_width(folder: Path, source: Path) -> Path:
    other = tiny_model("llama", vocab_size=259, hidden_size=64)
    return save_adapter(other, folder, seed=0, r=4, target_modules=["q_proj"])


def of_another_depth(folder: Path, source: Path) -> Path:
    other = tiny_model("llama", vocab_size=259, num_hidden_layers=3)
    return save_adapter(other, folder, seed=0, r=4, target_modules=["q_proj"])


def of_too_large_a_rank(folder: Path, source: Path) -> Path:
    model = tiny_model("llama", vocab_size=259)
    return save_adapter(model, folder, seed=0, r=ROWS + 1, target_modules=["q_proj"])


@pytest.fixture(scope="module")
def neighbour(server: RunningServer) -> tuple[int, ...]:
    """What a long request says while it is alone."""
    with server.client() as client:
        return client.generate("hello", adapter="provided", **LONG).token_ids


@pytest.mark.parametrize(
    ("make", "reason", "says"),
    [
        (not_a_number, "ADAPTER_NOT_FINITE", "NaN"),
        (infinite, "ADAPTER_NOT_FINITE", "infinity"),
        (too_large, "ADAPTER_NOT_FINITE", "1e+30"),
        (overflowing, "ADAPTER_NOT_FINITE", "a test token"),
        (of_another_width, "ADAPTER_BASE_MISMATCH", "64"),
        (of_another_depth, "ADAPTER_BASE_MISMATCH", "layers.2"),
        (of_too_large_a_rank, "ADAPTER_TOO_LARGE", f"rank {ROWS + 1}"),  # C30
    ],
    ids=["nan", "infinity", "too-large", "overflow", "width", "depth", "C30-rank"],
)
def test_an_adapter_that_cannot_run_is_refused_and_disturbs_nobody(
    server: RunningServer, client: Client, folders: dict[str, Path], tmp_path: Path,
    neighbour: tuple[int, ...], make: Callable[[Path, Path], Path], reason: str, says: str,
) -> None:  # fmt: skip
    bad = make(tmp_path / "bad", folders["one"])
    stream = client.stream("hello", adapter="provided", **LONG)
    tokens = next(stream).token_ids
    with pytest.raises(InvalidArgumentError, match=says.replace("+", r"\+")) as caught:
        client.adapters.upload("bad", bad)
    assert (caught.value.reason, caught.value.field) == (reason, "chunk")
    assert len(tokens) < len(neighbour)
    tokens += sum((chunk.token_ids for chunk in stream), ())
    assert tokens == neighbour
    with pytest.raises(NotFoundError):
        client.adapters.get("bad")
    assert staged(server) == []


def test_a_refused_upload_leaves_the_name_as_it_was(
    server: RunningServer, client: Client, folders: dict[str, Path], tmp_path: Path
) -> None:
    good = client.adapters.upload("improving", folders["one"])
    before = client.generate("hello", adapter="improving", **GREEDY)
    with pytest.raises(InvalidArgumentError):
        client.adapters.upload("improving", overflowing(tmp_path / "bad", folders["one"]))
    assert client.adapters.get("improving").digest == good.digest
    assert client.generate("hello", adapter="improving", **GREEDY).token_ids == before.token_ids
    kept = {blob.name for blob in (store_of(server) / "blobs").glob("*/*")}
    every = client.adapters.list(all_versions=True)
    named = {adapter.digest.removeprefix("sha256:") for adapter in every}
    assert kept == named


# What lasts


def test_a_kill_loses_nothing_that_was_confirmed_and_keeps_nothing_else(
    server: RunningServer, packages: dict[str, Path]
) -> None:
    with (
        grpc.insecure_channel(server.target) as channel,
        server.client() as client,
        Interrupted(AdapterServiceStub(channel), server, packages["wide"].read_bytes()) as upload,
    ):
        kept = client.adapters.upload("kept", packages["one"])
        server.kill()
        with pytest.raises(grpc.RpcError):
            upload.call.result(timeout=60)
    assert staged(server)
    server.start()
    assert staged(server) == []
    with server.client() as client:
        assert [adapter.name for adapter in client.adapters.list()] == ["kept", "provided"]
        found = client.adapters.get("kept")
        assert (found.digest, found.created_at) == (kept.digest, kept.created_at)
        done = client.generate("hello", adapter="kept", **GREEDY)
        assert done.adapter is not None
        assert done.adapter.digest == kept.digest
        client.adapters.delete("kept")


@pytest.mark.parametrize("seal", ["", f"blake3:{'0' * 64}"], ids=["unknown", "wrong"])
def test_bytes_damaged_on_disk_fail_their_adapter_only(
    server: RunningServer, packages: dict[str, Path], seal: str
) -> None:
    """D18. Also: uploads survive a restart, whatever seal a file of them has."""
    with server.client() as client:
        whole = client.adapters.upload("whole", packages["one"])
        damaged = client.adapters.upload("damaged", packages["two"])
        before = client.generate("hello", adapter="whole", **GREEDY).token_ids
    assert server.stop() == 0
    seals = keep_seals(server, {whole.digest: seal})
    assert set(map(len, seals.values())) == {len("blake3:") + 64}
    blob = blob_of(server, damaged.digest)
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    blob.write_bytes(content)
    server.start()
    with server.client() as client:
        assert client.adapters.get("whole").digest == whole.digest
        for _ in range(2):
            with pytest.raises(DataLossError) as caught:
                client.generate("hello", adapter="damaged", **GREEDY)
            assert caught.value.reason == "ADAPTER_DAMAGED"
        assert client.generate("hello", adapter="whole", **GREEDY).token_ids == before

        def is_sealed() -> bool:
            client.generate("hello", max_tokens=1)  # the engine tells when it has a step
            return keep_seals(server, {}) == seals

        assert eventually(is_sealed)
        # The same content again heals it.
        client.adapters.upload("damaged", packages["two"])
        assert client.generate("hello", adapter="damaged", **GREEDY).adapter is not None
        for name in ("whole", "damaged"):
            client.adapters.delete(name)


def keep_seals(server: RunningServer, seals: dict[str, str]) -> dict[str, str]:
    """Put seals into the catalog in place of those that are there, all of which are returned."""
    catalog = Catalog.in_folder(store_of(server))
    found = {record.digest: record.seal for record in catalog.versions()}
    if seals:
        catalog.keep_seals(seals)
    catalog.close()
    return found


# What keeps a server from starting


def serve(*arguments: str) -> tuple[int, str]:
    """Run `loramux serve`, which has to end by itself, and return exit code and stderr."""
    done = subprocess.run(
        [
            sys.executable, "-m", "loramux.cli", "serve", "--listen", "127.0.0.1:0",
            "--metrics", "127.0.0.1:0", "--threads", "1", *arguments,
        ],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip
    return done.returncode, done.stderr


def test_a_store_serves_one_server_at_a_time(roomy_base: Path, tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    try:
        code, said = serve("--model", str(roomy_base), "--store", str(tmp_path))
    finally:
        registry.close()
    assert code == 75
    assert said == f"loramux: {tmp_path} is in use by another server\n"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--max-running", "-1"], "--max-running is -1"),
        (["--listen", "nowhere"], "--listen is 'nowhere'"),
        (["--adapters", "/nowhere"], "--adapters /nowhere is not a directory"),
        (["--store", "/dev/null/store"], "--store /dev/null/store: Not a directory"),
    ],
    ids=["max-running", "listen", "adapters", "store"],
)
def test_a_bad_setting_is_one_clear_line(
    roomy_base: Path, tmp_path: Path, arguments: list[str], says: str
) -> None:
    code, said = serve("--model", str(roomy_base), "--store", str(tmp_path / "store"), *arguments)
    assert code == 78
    assert said.startswith("loramux: ")
    assert says in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("flag", ["--listen", "--metrics"])
def test_a_port_that_is_taken_shows_before_the_model_is_loaded(tmp_path: Path, flag: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        code, said = serve("--model", "/nowhere", "--store", str(tmp_path), flag, address)
    assert code == 78
    assert said == f"loramux: {flag} {address}: Address already in use\n"


def test_a_damaged_catalog_is_one_clear_line(roomy_base: Path, tmp_path: Path) -> None:
    (tmp_path / "catalog.sqlite").write_bytes(b"no database" * 1000)
    code, said = serve("--model", str(roomy_base), "--store", str(tmp_path))
    assert code == 78
    assert "the catalog is damaged" in said
    assert said.count("\n") == 1


@pytest.fixture(scope="module")
def late_ends(
    roomy_base: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[int, str]]:
    """How servers ended that could tell what is wrong only when the model was loaded."""
    folder = tmp_path_factory.mktemp("late")
    Registry(folder / "base").close()
    catalog = Catalog.in_folder(folder / "base")
    catalog.keep_note("base_fingerprint", "sha256:another")
    catalog.close()
    with ThreadPoolExecutor(2) as pool:
        ends = {
            name: pool.submit(serve, "--store", str(folder / name), *arguments)
            for name, arguments in {
                "model": ["--model", str(folder / "nothing")],
                "base": ["--model", str(roomy_base)],
                "device": ["--model", str(roomy_base), "--device", "cuda:99"],
                "memory": ["--model", str(roomy_base), "--kv-memory", "1TiB"],
            }.items()
        }
        return {name: end.result() for name, end in ends.items()}


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("model", "cannot load a base model"),
        ("base", "another base model (sha256:another)"),
        ("device", "device 'cuda:99' cannot be used"),
        ("memory", "--kv-memory of 1,024.00 GiB does not fit on device cpu, which has "),
    ],
)
def test_what_shows_only_when_the_model_is_loaded_is_one_clear_line_too(
    late_ends: dict[str, tuple[int, str]], name: str, says: str
) -> None:
    code, said = late_ends[name]
    assert code == 78
    assert "Traceback" not in said
    assert said.splitlines()[-1].startswith("loramux: ")
    assert says in said.splitlines()[-1]
