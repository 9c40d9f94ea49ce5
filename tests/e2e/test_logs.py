"""The log as JSON, and the audit log: what they tell of calls, and what they never tell."""

import json
import re
import secrets
from pathlib import Path
from typing import Any

import grpc
import pytest

from loramux.v1 import adapters_pb2, aliases_pb2, generation_pb2
from loramux_server.access.caller import Role
from loramux_server.access.key import Key
from loramux_server.observe.call_record import REQUEST_ID_KEY
from tests.support.access import shown
from tests.support.observed import Observed
from tests.support.packages import packed
from tests.support.polling import eventually
from tests.support.wire import chunks, upload_header

V1 = "/loramux.v1"
GENERATE = f"{V1}.GenerationService/Generate"
UPLOAD = f"{V1}.AdapterService/UploadAdapter"
SET_ALIAS = f"{V1}.AliasService/SetAlias"
DELETE = f"{V1}.AdapterService/DeleteAdapter"
PROMPT = "the weather in Oslo"


class Reported:
    """A server that was called in many ways, and what it wrote down of that."""

    def __init__(self, observed: Observed) -> None:
        self.publisher = observed.keys[Role.PUBLISHER]
        self.user = observed.keys[Role.USER]
        self.audit_file = observed.audit
        self.ids: dict[str, str] = {}
        self.secrets: list[str] = []
        self.log = ""

    def call(
        self, channel: grpc.Channel, name: str, path: str, request: Any, key: Key | None
    ) -> grpc.StatusCode:
        """Make a call, keep the id that came back under `name`, and return the status."""
        kind = channel.stream_unary if isinstance(request, list) else channel.unary_unary
        method: Any = kind(path, request_serializer=lambda m: m if isinstance(m, bytes)
                      else m.SerializeToString())  # fmt: skip
        metadata = (*shown(key.text if key else None), (REQUEST_ID_KEY, f"call-{name}"))
        given = iter(request) if isinstance(request, list) else request
        future = method.future(given, metadata=metadata, timeout=60)
        code: grpc.StatusCode = future.code()
        self.ids[name] = str(dict(future.trailing_metadata()).get(REQUEST_ID_KEY))
        return code

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.splitlines() if line.startswith("{")]

    def of(self, name: str) -> dict[str, Any]:
        """Return the line of the call `name`."""
        (line,) = [
            line for line in self.lines()
            if line["logger"] == "loramux.calls" and line["request_id"] == f"call-{name}"
        ]  # fmt: skip
        return line

    def acts(self) -> list[dict[str, Any]]:
        acts = [json.loads(line) for line in self.audit_file.read_text().splitlines()]
        # The server's own acts belong to no call.
        return [act for act in acts if act.get("request_id", "").startswith("call-")]


def generate(**fields: Any) -> generation_pb2.GenerateRequest:
    sampling = generation_pb2.SamplingParams(max_tokens=3, ignore_eos=True)
    return generation_pb2.GenerateRequest(**{"prompt": PROMPT, "sampling": sampling, **fields})


@pytest.fixture(scope="module")
def reported(observed: Observed, tiny_adapters: Path) -> Reported:
    reported = Reported(observed)
    package = packed(tiny_adapters / "small")
    with grpc.insecure_channel(observed.server.target) as channel:

        def call(name: str, path: str, request: Any, key: Key | None) -> grpc.StatusCode:
            return reported.call(channel, name, path, request, key)

        upload = [upload_header("poet", package), *chunks(package)]
        assert call("upload", UPLOAD, upload, reported.publisher) is grpc.StatusCode.OK
        damaged = [upload_header("bad", b"x" * 99), *chunks(b"x" * 99)]
        assert call("damaged", UPLOAD, damaged, reported.publisher) is not grpc.StatusCode.OK
        assert call("denied", UPLOAD, upload, reported.user) is grpc.StatusCode.PERMISSION_DENIED
        move = aliases_pb2.SetAliasRequest(
            name="poet", alias="stable", split=aliases_pb2.Split(weights={1: 1})
        )
        assert call("move", SET_ALIAS, move, reported.publisher) is grpc.StatusCode.OK
        assert call("fine", GENERATE, generate(adapter="poet"), reported.user) is grpc.StatusCode.OK
        for name, request in {
            "unknown": generate(adapter="nobody"),
            "both": generate(prompt_token_ids=[1]),
            "long": generate(prompt=PROMPT * 100),
            "path": generate(adapter="/etc/passwd"),
            "junk": b"\xff" + PROMPT.encode(),
        }.items():
            assert call(name, GENERATE, request, reported.user) is not grpc.StatusCode.OK
        stranger = Key(reported.user.id, reported.user.text[:-43] + secrets.token_urlsafe(32))
        assert call("stranger", GENERATE, generate(), stranger) is grpc.StatusCode.UNAUTHENTICATED
        gone = adapters_pb2.DeleteAdapterRequest(name="poet")
        assert call("delete", DELETE, gone, reported.publisher) is grpc.StatusCode.OK
        reported.secrets = [key.text[-43:] for key in (reported.publisher, reported.user, stranger)]
    log = observed.server.log
    assert eventually(lambda: '"request_id": "call-delete"' in log.read_text())
    reported.log = log.read_text()
    return reported


def test_a_call_has_the_id_that_it_brought(reported: Reported) -> None:
    assert reported.ids == {name: f"call-{name}" for name in reported.ids}


def test_a_generation_is_one_line(reported: Reported) -> None:
    line = reported.of("fine")
    assert line["method"] == "loramux.v1.GenerationService.Generate"
    assert (line["tenant"], line["key"], line["status"]) == ("acme", reported.user.id, "OK")
    assert (line["prompt_tokens"], line["completion_tokens"]) == (len(PROMPT) + 1, 3)
    assert line["adapter"] == "acme/poet"
    assert re.fullmatch("sha256:[0-9a-f]{64}", line["digest"])
    assert 0 <= line["queue_seconds"] <= line["first_token_seconds"] <= line["seconds"]


@pytest.mark.parametrize(("name", "status", "reason"), [
    ("unknown", "NOT_FOUND", "ADAPTER_NOT_FOUND"),
    ("both", "INVALID_ARGUMENT", "INVALID_FIELD"),
    ("long", "INVALID_ARGUMENT", "CONTEXT_LENGTH_EXCEEDED"),
    ("junk", "INVALID_ARGUMENT", "MALFORMED_REQUEST"),
    ("stranger", "UNAUTHENTICATED", "UNAUTHENTICATED"),
    ("denied", "PERMISSION_DENIED", "PERMISSION_DENIED"),
])  # fmt: skip
def test_a_line_says_why_a_call_failed(
    reported: Reported, name: str, status: str, reason: str
) -> None:
    line = reported.of(name)
    assert (line["status"], line["reason"]) == (status, reason)


def test_every_line_of_every_process_is_json(reported: Reported) -> None:
    others = [line for line in reported.log.splitlines() if not line.startswith("{")]
    assert [line for line in others if not line.startswith("loramux serves on")] == []
    assert {line["process"] for line in reported.lines()} <= {"frontend", "engine"}
    assert len(reported.lines()) > 10


def test_neither_log_contains_prompts_keys_or_paths(reported: Reported) -> None:
    for text in (reported.log, reported.audit_file.read_text()):
        assert not any(word in text for word in (PROMPT, PROMPT[:12], *reported.secrets))
        assert not re.search(r"(?<![\w.:/])/(?:home|tmp|etc|usr|work|var|root)\b", text)
        assert not re.search(r"\b0x[0-9a-f]{6,}", text)
        assert "Traceback" not in text


def test_the_audit_log_reports_each_act_and_how_it_ended(reported: Reported) -> None:
    acts = reported.acts()
    assert [(act["act"], act["outcome"]) for act in acts] == [
        ("adapter.upload", "OK"),
        ("adapter.upload", "INVALID_ARGUMENT"),
        ("adapter.upload", "PERMISSION_DENIED"),
        ("alias.set", "OK"),
        ("adapter.delete", "OK"),
    ]
    upload, _, denied, move, _ = acts
    assert (upload["tenant"], upload["key"]) == ("acme", reported.publisher.id)
    assert upload["adapter"] == "acme/poet:1"
    assert upload["digest"] == f"sha256:{upload['target']['header.sha256']}"
    assert (denied["key"], denied["role"]) == (reported.user.id, "user")
    assert move["target"]["name"] == "acme/poet"
    assert move["target"]["alias"] == "stable"
    assert reported.audit_file.stat().st_mode & 0o777 == 0o600
