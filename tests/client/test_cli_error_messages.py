"""What the command line says when a call fails: one line, in the terms of its own options."""

import socket
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import pytest

from loramux._wire import ERROR_KEY
from loramux.cli.app import run
from loramux.v1 import adapters_pb2_grpc, errors_pb2, generation_pb2_grpc


@pytest.fixture
def refusing() -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """A server that refuses calls by the next (field, message) of a list."""
    refusals: list[tuple[str, str]] = []

    def refuse(self: Any, request: Any, context: grpc.ServicerContext) -> Any:
        field, message = refusals.pop(0)
        detail = errors_pb2.ErrorDetail(field=field)
        context.set_trailing_metadata(((ERROR_KEY, detail.SerializeToString()),))
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, message)

    with ThreadPoolExecutor(2) as threads:
        server = grpc.server(threads)
        generation = type("G", (generation_pb2_grpc.GenerationServiceServicer,), {
            "StreamGenerate": refuse,
        })  # fmt: skip
        adapters = type("A", (adapters_pb2_grpc.AdapterServiceServicer,), {"GetAdapter": refuse})
        generation_pb2_grpc.add_GenerationServiceServicer_to_server(generation(), server)
        adapters_pb2_grpc.add_AdapterServiceServicer_to_server(adapters(), server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield f"127.0.0.1:{port}", refusals
        server.stop(None)


def error_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str
) -> str:
    monkeypatch.setattr(sys, "argv", ["loramux", *arguments])
    assert run() == 1
    return capsys.readouterr().err


def test_a_field_of_a_request_is_called_what_its_option_is_called(
    refusing: tuple[str, list[tuple[str, str]]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    target, refusals = refusing
    monkeypatch.setenv("LORAMUX_SERVER", target)
    for field, message, said in (
        ("sampling.top_p", "sampling.top_p is 3.0", "--top-p is 3.0"),
        ("sampling.stop[1]", "sampling.stop[1] is empty", "--stop is empty"),
        ("sampling.num_beams", "sampling.num_beams is 99", "--beams is 99"),
        ("adapter", "adapter 'x' is not registered", "--adapter 'x' is not registered"),
        ("prompt", "prompt is empty", "prompt is empty"),  # no option
        ("top_p", "another text", "another text"),
        ("", "no field", "no field"),
    ):
        refusals.append((field, message))
        assert error_message(monkeypatch, capsys, "generate", "x") == f"loramux: {said}\n"
    refusals.append(("adapter", "adapter 'x' is wrong"))
    assert error_message(monkeypatch, capsys, "pull", "x") == "loramux: adapter 'x' is wrong\n"


def test_where_nothing_listens_the_address_and_what_to_do_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        target = f"localhost:{taken.getsockname()[1]}"
    said = error_message(monkeypatch, capsys, "rm", "x", "--server", target)  # not retried
    assert said == (
        f"loramux: no server answers at {target}; start one with `loramux serve`, or set "
        "--server or LORAMUX_SERVER\n"
    )


def test_what_cannot_be_pushed_is_named_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = error_message(monkeypatch, capsys, "push", str(tmp_path))
    assert said.startswith(f"loramux: {tmp_path} has no readable adapter_config.json")
    assert said.count(str(tmp_path)) == 1
    gone = str(tmp_path / "gone")
    said = error_message(monkeypatch, capsys, "push", gone)
    assert said == f"loramux: {gone}: No such file or directory\n"
