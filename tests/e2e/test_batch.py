"""`loramux batch`: files of requests as OpenAI has them, a real server, what gRPC answers."""

import asyncio
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import typer

from loramux import Client
from loramux._access import KEY_VARIABLE
from loramux.cli.app import app
from loramux.cli.batch import batch as batch_command
from loramux.errors import InvalidArgumentError
from loramux.gateway.batch import (
    ChangedFileError,
    Line,
    OutputFile,
    Progress,
    RequestFile,
    WrongLineError,
    answer_all,
)
from loramux.gateway.in_process import InProcessGateway, Reply
from tests.support.server import RunningServer

SAMPLED: dict[str, Any] = {"max_tokens": 8, "seed": 7, "temperature": 0.9}
CHAT, TEXT, VECTORS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"


@pytest.fixture(scope="module")
def direct(chat_server: RunningServer) -> Iterator[Client]:
    with chat_server.client() as client:
        yield client


def request(number: int, url: str, **body: Any) -> dict[str, Any]:
    return {"custom_id": f"r{number}", "method": "POST", "url": url, "body": body}


def write(path: Path, *lines: object) -> Path:
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return path


def batch(server: RunningServer, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "loramux.cli", "batch", *map(str, arguments)]
    return subprocess.run(
        [*command, "--server", server.target], capture_output=True, text=True, timeout=120
    )


def answers(path: Path) -> dict[str, Any]:
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert len({each["custom_id"] for each in found}) == len(found)
    assert all(each["error"] is None for each in found)
    return {each["custom_id"]: each["response"] for each in found}


def test_a_file_is_answered_as_grpc_answers_it(
    chat_server: RunningServer, direct: Client, tmp_path: Path
) -> None:
    asked = [
        *(
            request(i, TEXT, model=("base", "plain")[i % 2], prompt=f"Tell {i}", **SAMPLED)
            for i in range(40)
        ),
        request(40, CHAT, model="own", messages=[{"role": "user", "content": "Who?"}], **SAMPLED),
        request(41, VECTORS, model="plain", input=["one", "two"]),
        request(
            42, "/v1/responses", model="own", input="Who?", max_output_tokens=8, seed=7,
            temperature=0.9,
        ),
    ]  # fmt: skip
    source = write(tmp_path / "requests.jsonl", *asked)
    done = batch(chat_server, source, "-o", tmp_path / "answers.jsonl")
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert "43 of 43 requests answered now: 43 with 200; retries: 0" in done.stderr
    found = answers(tmp_path / "answers.jsonl")
    for number in range(40):
        adapter = "plain" if number % 2 else None
        wanted = direct.generate(f"Tell {number}", adapter=adapter, **SAMPLED).text
        response = found[f"r{number}"]
        assert (response["status_code"], response["body"]["choices"][0]["text"]) == (200, wanted)
        assert response["request_id"]
    chatted = direct.chat([{"role": "user", "content": "Who?"}], adapter="own", **SAMPLED)
    assert found["r40"]["body"]["choices"][0]["message"]["content"] == chatted.text
    (item,) = found["r42"]["body"]["output"]
    assert item["content"][0]["text"] == chatted.text
    vectors = [each["embedding"] for each in found["r41"]["body"]["data"]]
    wanted_vectors = direct.embed(["one", "two"], adapter="plain").vectors
    assert vectors == [pytest.approx(vector, abs=1e-4) for vector in wanted_vectors]


def test_what_was_cut_off_or_refused_is_asked_again(
    chat_server: RunningServer, tmp_path: Path
) -> None:
    source, output = tmp_path / "requests.jsonl", tmp_path / "answers.jsonl"
    plain = [request(i, TEXT, model="base", prompt="a", max_tokens=2) for i in range(3)]
    write(source, *plain[:2], request(2, TEXT, model="nobody", prompt="a"))
    done = batch(chat_server, source, "-o", output)
    assert done.returncode == 1 and "2 with 200, 1 with 404" in done.stderr
    refused = answers(output)["r2"]
    assert refused["status_code"] == 404 and "nobody" in refused["body"]["error"]["message"]
    kept = next(line for line in output.read_text().splitlines() if '"r0"' in line)
    again = batch(chat_server, source, "-o", output)
    assert again.returncode == 2 and "--resume" in again.stderr
    # As a run leaves it that ends in the middle.
    output.write_text(output.read_text() + '{"id": "batch_req_1", "cust')
    write(source, *plain)
    done = batch(chat_server, source, "-o", output, "--resume")
    assert done.returncode == 0 and "1 of 3 requests answered now: 1 with 200" in done.stderr
    assert set(answers(output)) == {"r0", "r1", "r2"}
    assert kept in output.read_text()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: Input data was truncated"),
        ({"custom_id": "b", "url": TEXT}, "line 2: Object missing required field `body`"),
        (request(0, TEXT), "line 2: custom_id 'r0' is repeated; expected unique ids"),
        (request(1, "/v1/images"), "line 2: url is '/v1/images'; expected one of /v1/chat"),
        (request(1, TEXT) | {"method": "GET"}, "line 2: method is 'GET'; expected 'POST'"),
        (request(1, TEXT) | {"model": "x"}, "line 2: Object contains unknown field `model`"),
        (request(1, TEXT) | {"custom_id": ""}, "custom_id has 0 characters; expected 1 to 512"),
        (b'{"custom_id": "b", "url": "\xff"}', "line 2: "),
        ('{"custom_id": "b", "body": {"x": ' + "[" * 9999, "line 2: maximum recursion depth"),
        (request(1, TEXT, stream=True), "line 2: body.stream is true; expected false"),
    ],
)
def test_a_line_that_is_no_request_is_named(tmp_path: Path, line: object, message: str) -> None:
    source = write(tmp_path / "requests.jsonl", request(0, TEXT, model="base"))
    text = line if isinstance(line, str | bytes) else json.dumps(line)
    with source.open("ab") as file:
        file.write(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(WrongLineError) as caught:
        RequestFile(source)
    assert message in str(caught.value)


ANSWER = '{"id":"a","custom_id":"r0","response":{"status_code":200,"request_id":"","body":{}}}\n'


def refused(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 2) -> str:
    """Return what `loramux batch` says, which asks nobody."""
    with pytest.raises(SystemExit) as ended:
        app(["batch", *map(str, arguments), "--server", "127.0.0.1:1", "--patience", "0"])
    assert ended.value.code == code
    # Without the frame around it, and in one line.
    return " ".join(re.sub(r"[│╭╮╰╯─]", " ", capsys.readouterr().err).split())


@pytest.mark.parametrize(
    ("held", "message"),
    [
        ("my notes\n", "line 1: JSON is malformed"),
        (ANSWER + '{"a": 1}\n', "line 2: Object missing required field"),
        (ANSWER + '{"a": 1}', "line 2: not a response, nor the beginning of one"),
        (b"\xff\n", "line 1: JSON is malformed"),
        ('{"id":"\xff"}\n'.encode("latin-1"), "line 1: "),
    ],
)
def test_a_file_of_something_else_is_left_alone(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, held: str | bytes, message: str
) -> None:
    source = write(tmp_path / "requests.jsonl", request(0, TEXT, model="base"))
    output = tmp_path / "notes"
    before = held if isinstance(held, bytes) else held.encode()
    output.write_bytes(before)
    with pytest.raises(WrongLineError) as caught:
        OutputFile(output, goes_on=True)
    assert message in str(caught.value)
    assert "line" in refused(capsys, source, "-o", output, "--resume")
    assert output.read_bytes() == before


def test_a_pipe_is_refused_since_it_is_read_twice(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    source, output = tmp_path / "pipe", tmp_path / "answers.jsonl"
    os.mkfifo(source)
    for path in (source, tmp_path, tmp_path / "nowhere"):
        assert "is not a regular file; it is read twice" in refused(capsys, path, "-o", output)
    assert not output.exists()


def test_a_file_that_changes_between_its_two_readings_ends_the_run_with_the_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    source, output = tmp_path / "requests.jsonl", tmp_path / "answers.jsonl"
    write(source, request(0, TEXT, model="base", prompt="a"))
    # The answers of before are read after the requests were looked at, and wait for their writer.
    os.mkfifo(output)

    def change() -> None:
        with output.open("wb"):
            write(source, request(0, TEXT, model="base", prompt="b"))

    changing = threading.Thread(target=change)
    changing.start()
    reported = refused(capsys, source, "-o", output, "--resume", code=1)
    changing.join()
    assert reported == (
        f"loramux: {source}: line 1 changed after the file was checked; expected the file to "
        f"stay unchanged; --resume continues {output}"
    )
    assert output.read_bytes() == b""


@pytest.mark.parametrize("key", ["lmx_a\nb", "lmx_ä"])
def test_a_key_that_cannot_be_one_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, key: str
) -> None:
    source, output = tmp_path / "requests.jsonl", tmp_path / "answers.jsonl"
    write(source, request(0, TEXT, model="base", prompt="a"))
    monkeypatch.setenv(KEY_VARIABLE, key)
    with pytest.raises(InvalidArgumentError, match="key is malformed"):
        batch_command(source, output)
    assert not output.exists()


def test_fewer_answers_than_requests_are_a_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    source, output = tmp_path / "requests.jsonl", tmp_path / "answers.jsonl"
    write(source, *(request(i, TEXT, model="base") for i in range(2)))
    output.write_text(ANSWER)

    async def as_if_it_was_cut_short(*_: object, **__: object) -> Progress:
        return Progress(num_again=3)

    monkeypatch.setattr("loramux.gateway.batch.answer_all", as_if_it_was_cut_short)
    with pytest.raises(typer.Exit) as ended:
        batch_command(source, output, resume=True)
    assert ended.value.exit_code == 1
    assert "0 of 2 requests answered now: none; retries: 3" in capsys.readouterr().err
    write(source, request(0, TEXT, model="base"))
    batch_command(source, output, resume=True)


class FullGateway(InProcessGateway):
    """Has no room for the first requests."""

    def __init__(self, num_full: int, milliseconds: int = 1) -> None:
        self.num_left, self.milliseconds = num_full, milliseconds
        self.num_at_once = self.most_at_once = 0

    async def post(self, url: str, body: bytes) -> Reply:
        self.num_at_once += 1
        self.most_at_once = max(self.most_at_once, self.num_at_once)
        await asyncio.sleep(0)
        self.num_at_once -= 1
        self.num_left -= 1
        if self.num_left >= 0:
            return Reply(429, {"retry-after-ms": str(self.milliseconds)}, b'{"error": {}}')
        return Reply(200, {}, msgspec.json.encode({"asked": msgspec.json.decode(body)}))


async def test_a_priority_is_that_of_requests_that_set_none(tmp_path: Path) -> None:
    lines = [
        Line("own", TEXT, {"priority": 3}), Line("none", TEXT, {"n": 1}),
        Line("null", TEXT, {"priority": None}),
    ]  # fmt: skip
    for priority, none, null in ((10, {"priority": 10, "n": 1}, 10), (None, {"n": 1}, None)):
        path = tmp_path / f"{priority}.jsonl"
        with OutputFile(path, goes_on=False) as output:
            await answer_all(
                lines, FullGateway(0), output, concurrency=1, patience=60, priority=priority
            )
        found = {name: each["body"]["asked"] for name, each in answers(path).items()}
        assert found == {"own": {"priority": 3}, "none": none, "null": {"priority": null}}


async def test_who_finds_no_room_comes_again_until_patience_is_over(tmp_path: Path) -> None:
    lines = [Line(f"r{i}", TEXT, {"n": i}) for i in range(20)]
    gateway = FullGateway(9)
    with OutputFile(tmp_path / "a.jsonl", goes_on=False) as output:
        progress = await answer_all(lines, gateway, output, concurrency=4, patience=60)
    assert (progress.num_again, dict(progress.statuses)) == (9, {200: 20})
    assert gateway.most_at_once == 4
    found = answers(tmp_path / "a.jsonl")
    assert {name: each["body"]["asked"]["n"] for name, each in found.items()} == {
        f"r{i}": i for i in range(20)
    }
    with OutputFile(tmp_path / "b.jsonl", goes_on=False) as output:
        progress = await answer_all(lines, FullGateway(999), output, concurrency=4, patience=0)
    assert (progress.num_again, dict(progress.statuses), progress.num_failed) == (0, {429: 20}, 20)


@pytest.mark.parametrize(
    ("kept", "added", "message"),
    [
        (3, [request(3, TEXT)], "line 4 was added after"),
        (2, [], "line 3 was removed after"),
        (1, [request(2, TEXT)], "line 2 changed after"),
        (1, ["no request"], "line 2 changed after"),
    ],
)
async def test_what_stands_before_a_line_that_changed_is_answered(
    tmp_path: Path, kept: int, added: list[object], message: str
) -> None:
    asked = [request(i, TEXT) for i in range(3)]
    source, output = tmp_path / "requests.jsonl", tmp_path / "answers.jsonl"
    lines = RequestFile(write(source, *asked))
    write(source, *asked[:kept], *added)
    with (
        OutputFile(output, goes_on=False) as file,
        pytest.raises(ChangedFileError, match=message),
    ):
        await answer_all(lines, FullGateway(0), file, concurrency=1, patience=0)
    assert set(answers(output)) == {f"r{i}" for i in range(kept)}


async def test_a_file_that_is_gone_is_said_to_be_gone(tmp_path: Path) -> None:
    lines = RequestFile(write(tmp_path / "requests.jsonl", request(0, TEXT)))
    (tmp_path / "requests.jsonl").unlink()
    with (
        OutputFile(tmp_path / "answers.jsonl", goes_on=False) as file,
        pytest.raises(FileNotFoundError),
    ):
        await answer_all(lines, FullGateway(0), file, concurrency=4, patience=0)


@pytest.mark.parametrize(("milliseconds", "least"), [(0, 0.05), (2000, 2.0)])
async def test_not_all_come_again_at_one_moment_nor_at_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, milliseconds: int, least: float
) -> None:
    waits: list[float] = []
    sleep = asyncio.sleep

    async def noted(seconds: float) -> None:
        if seconds:
            waits.append(seconds)
        await sleep(0)

    monkeypatch.setattr(asyncio, "sleep", noted)
    lines = [Line(f"r{i}", TEXT, {}) for i in range(8)]
    seen: list[int] = []

    def see(progress: Progress) -> None:
        seen.append(progress.num_again)

    gateway = FullGateway(8, milliseconds)
    with OutputFile(tmp_path / "a.jsonl", goes_on=False) as output:
        await answer_all(lines, gateway, output, concurrency=8, patience=60, on_progress=see)
    assert len(waits) == len(set(waits)) == 8
    assert all(least <= seconds <= 1.25 * least for seconds in waits)
    assert seen == [*range(1, 9), *[8] * 8]
