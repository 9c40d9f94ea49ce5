"""Hostile packages over the wire: the exact status and reason, and nothing of them is run.

Both processes of the server have a witness of what they import, run and connect to. Ids are those
of groups A, B and F of the corpus of bad inputs. Of F the server has no such thing for these rows:
F01, F02 and F04 TLS, F07 credentials, F18 to F20 limits of connections. F10, two requests on a
unary method, is answered by gRPC itself with the answer to the first.
"""

import io
import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from loramux import Client
from loramux.errors import LoramuxError
from loramux.v1 import generation_pb2
from loramux.v1.adapters_pb2_grpc import AdapterServiceStub
from loramux_adapters import PackageError
from loramux_server.store.check import check_package
from tests.adapters.files import package, pair
from tests.support.bases import ROOMY
from tests.support.hostile import CORPUS, WITNESS, Event, Hostile, events, with_notes
from tests.support.server import RunningServer
from tests.support.wire import Refusal, chunks, refusal, upload_header

GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": 4}


@dataclass(frozen=True)
class Watched:
    """A server, and what its processes did."""

    server: RunningServer
    client: Client
    stub: AdapterServiceStub
    log: Path

    def since(self, moment: float) -> set[str]:
        """Return what was forbidden and happened after `moment`, in whichever process."""
        found: list[Event] = events(self.log.read_text())
        return {event.what for event in found if event.moment > moment}


@contextmanager
def environment(name: str, value: str) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(name, value)
        yield


@pytest.fixture(scope="module")
def watched(
    tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, tiny_adapters: Path
) -> Iterator[Watched]:
    folder = tmp_path_factory.mktemp("watched")
    log = folder / "log"
    (folder / "site").mkdir()
    (folder / "site" / "sitecustomize.py").write_text(
        WITNESS + f"witness(os.open({str(log)!r}, os.O_WRONLY | os.O_CREAT | os.O_APPEND))\n"
    )
    paths = [str(folder / "site"), os.environ.get("PYTHONPATH", "")]
    with (
        environment("PYTHONPATH", os.pathsep.join(paths)),
        RunningServer(folder / "server", tiny_base) as server,
        server.client() as client,
        grpc.insecure_channel(server.target) as channel,
    ):
        for name in ("small", "wide"):  # what is imported when it is first needed is there then
            client.adapters.upload(name, tiny_adapters / name)
            client.generate("abc", adapter=name, **GREEDY)
        folder = shutil.copytree(tiny_adapters / "small", folder / "chatty")
        (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
        client.adapters.upload("chatty", folder)
        client.chat([{"role": "user", "content": "x"}], adapter="chatty", **GREEDY)
        client.adapters.delete("chatty")
        watched = Watched(server, client, AdapterServiceStub(channel), log)
        assert upload(watched, Hostile("one", b"PK", "")) is not None
        yield watched


def upload(watched: Watched, case: Hostile) -> Refusal | None:
    messages = [upload_header("hostile", case.raw), *chunks(case.raw)]
    try:
        watched.stub.UploadAdapter(iter(messages), timeout=60)
    except grpc.RpcError as error:
        return refusal(error)
    return None


def test_both_processes_are_watched(watched: Watched) -> None:
    pids = {event.pid for event in events(watched.log.read_text())}
    assert {watched.server.pid, watched.server.engine_pid} <= pids


def test_each_hostile_package_has_its_status_and_is_never_followed(
    watched: Watched, tiny_base: Path
) -> None:
    start = time.monotonic()
    base = watched.client.info()
    for case in CORPUS:
        found = upload(watched, case)
        assert found is not None, case.id
        assert found.code == grpc.StatusCode.INVALID_ARGUMENT, (case.id, found)
        assert found.reason in expected(case), (case.id, found)
        assert found.field in ("chunk", "header.size_bytes"), case.id
        assert found.message.isprintable() and len(found.message) < 1000, case.id
    assert watched.since(start) == set()
    assert watched.client.info() == base
    assert [adapter.name for adapter in watched.client.adapters.list()] == ["small", "wide"]
    answer = watched.client.generate("abc", adapter="small", **GREEDY)
    assert answer.usage.completion_tokens


def expected(case: Hostile) -> set[str]:
    """Return the reason that `case` has on a base which it does not fit."""
    if not case.raw:
        return {"INVALID_FIELD"}
    with pytest.raises(PackageError) as caught:
        check_package(io.BytesIO(case.raw), len(case.raw), ROOMY)
    if caught.value.reason != "ADAPTER_BASE_MISMATCH":
        assert caught.value.reason == case.reason, case.id
    return {caught.value.reason}


@pytest.mark.parametrize("name", [
    "..", "../x", "a/../b", "a/b/c", "a\\b", "/a", ".", "", " ", "\t", "%2e%2e", "a\0b", "a\nb",
    "\U0001f600", "e\u0301", "Upper", "x" * 64, "-a",
])  # fmt: skip
def test_a_name_that_is_a_path_or_worse_is_refused(watched: Watched, name: str) -> None:
    """B15, B16."""
    start = time.monotonic()
    raw = package()
    with pytest.raises(grpc.RpcError) as caught:
        watched.stub.UploadAdapter(iter([upload_header(name, raw), *chunks(raw)]), timeout=60)
    found = refusal(caught.value)
    assert (found.code, found.reason, found.field) == (
        grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", "header.name",
    )  # fmt: skip
    assert watched.since(start) == set()


def test_a_template_of_an_upload_is_parsed_and_not_run(watched: Watched) -> None:
    start = time.monotonic()
    evil = "{{ cycler.__init__.__globals__.os.system('true') }}{% if"
    found = upload(watched, Hostile("", with_notes(chat_template=evil), ""))
    assert found is not None and found.reason == "INVALID_ADAPTER_CONFIG"
    assert "chat_template: line 1" in found.message
    assert watched.since(start) == set()


@pytest.mark.parametrize("template", [
    "{{ cycler.__init__.__globals__.os.system('true') }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{% import 'os' as os %}{{ os.system('true') }}",
    "{{ raise_exception('no') }}",
])  # fmt: skip
def test_a_template_runs_in_neither_process(
    watched: Watched, tiny_adapters: Path, tmp_path: Path, template: str
) -> None:
    folder = shutil.copytree(tiny_adapters / "small", tmp_path / "evil")
    (folder / "chat_template.jinja").write_text(template)
    start = time.monotonic()
    watched.client.adapters.upload("evil", folder)
    with pytest.raises(LoramuxError) as caught:
        watched.client.chat([{"role": "user", "content": "x"}], adapter="evil")
    watched.client.adapters.delete("evil")
    assert caught.value.reason in ("CHAT_TEMPLATE_FAILED", "INVALID_FIELD")
    # The process that renders may write to no file: what it must not do is tried elsewhere.
    assert watched.since(start) == set()


@pytest.mark.parametrize("raw", [
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", bytes(range(1, 256)) * 16,
    b"\x16\x03\x01\x02\x00\x01" + b"\0" * 512,
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 512,
])  # fmt: skip
def test_bytes_that_are_no_http2_end_the_connection_alone(watched: Watched, raw: bytes) -> None:
    """F03."""
    host, port = watched.server.target.rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(raw)
        while connection.recv(4096):
            pass
    assert watched.client.info().vocab_size


def call(watched: Watched, method: str, message: bytes = b"", **options: Any) -> Refusal:
    with grpc.insecure_channel(watched.server.target) as channel:
        unary: Any = channel.unary_unary(method)
        with pytest.raises(grpc.RpcError) as caught:
            unary(message, timeout=60, **options)
    return refusal(caught.value)


@pytest.mark.parametrize("method", [
    "/loramux.v1.GenerationService/Nothing", "/loramux.v2.GenerationService/Generate",
    "/grpc.channelz.v1.Channelz/GetTopChannels",
])  # fmt: skip
def test_an_unknown_method_is_unimplemented(watched: Watched, method: str) -> None:
    """F09, F11."""
    assert call(watched, method).code == grpc.StatusCode.UNIMPLEMENTED


def test_metadata_beyond_its_limit_is_refused(watched: Watched) -> None:
    """F05, F06."""
    method = "/loramux.v1.ServerService/GetServerInfo"
    for metadata in ([("x", "y" * (64 << 10))], [(f"k{i}", "v") for i in range(10_000)]):
        found = call(watched, method, metadata=metadata)
        assert found.code == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert watched.client.info().vocab_size


def test_a_compressed_message_is_no_bomb(watched: Watched) -> None:
    """F08."""
    request = generation_pb2.GenerateRequest(prompt="a " * (4 << 20))
    found = call(
        watched,
        "/loramux.v1.GenerationService/Generate",
        request.SerializeToString(),
        compression=grpc.Compression.Gzip,
    )
    assert found.code == grpc.StatusCode.UNIMPLEMENTED


def test_a_pair_of_other_widths_does_not_fit(watched: Watched) -> None:
    found = upload(watched, Hostile("", package(pair("model.layers.0.self_attn.q_proj", 2)), ""))
    assert found is not None and found.reason == "ADAPTER_BASE_MISMATCH"
