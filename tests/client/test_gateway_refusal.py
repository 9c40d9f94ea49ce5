"""What OpenAI's clients are told of each error."""

import json
from collections.abc import Sequence
from typing import Any

import grpc
import pytest

from loramux import errors
from loramux.errors import LoramuxError
from loramux.gateway.caller import Caller, caller_of
from loramux.gateway.refusal import refusal

CALLER = Caller("mine", "", (), {"x-request-id": "mine"})
KINDS = [getattr(errors, name) for name in errors.__all__ if name != "LoramuxError"]
STATUSES = {
    "INVALID_ARGUMENT": 400, "FAILED_PRECONDITION": 400, "OUT_OF_RANGE": 400,
    "UNAUTHENTICATED": 401, "PERMISSION_DENIED": 403, "NOT_FOUND": 404, "ALREADY_EXISTS": 409,
    "ABORTED": 409, "RESOURCE_EXHAUSTED": 429, "CANCELLED": 499, "INTERNAL": 500, "DATA_LOSS": 500,
    "UNIMPLEMENTED": 501, "UNAVAILABLE": 503, "DEADLINE_EXCEEDED": 504,
}  # fmt: skip


def reported(error: LoramuxError) -> tuple[int, dict[str, Any], dict[str, str]]:
    answer = refusal(error, CALLER)
    return answer.status_code, json.loads(bytes(answer.body))["error"], dict(answer.headers)


@pytest.mark.parametrize("kind", KINDS)
def test_every_status_has_its_own_in_http(kind: type[LoramuxError]) -> None:
    status, error, headers = reported(kind("why", reason="SOME_REASON", retry_delay=0.25))
    assert status == STATUSES[kind.code.name]
    assert (error["message"], error["code"], error["param"]) == ("why", "some_reason", None)
    assert headers["x-request-id"] == "mine"
    assert (headers["retry-after"], headers["retry-after-ms"]) == ("1", "250")
    assert ("www-authenticate" in headers) == (status == 401)


@pytest.mark.parametrize("kind", KINDS)
def test_the_words_of_the_transport_stay_here(kind: type[LoramuxError]) -> None:
    _, error, headers = reported(kind("failed to connect to ipv4:10.0.0.7:50051"))
    assert "10.0.0.7" not in error["message"]
    assert error["code"] == kind.code.name.lower()
    assert ("retry-after" in headers) == (kind.code is grpc.StatusCode.UNAVAILABLE)


@pytest.mark.parametrize(
    ("field", "param"),
    [
        ("sampling.top_p", "top_p"), ("sampling.include_stop", "include_stop_str_in_output"),
        ("adapters[1].adapter", "adapters[1].name"), ("adapters[1].weight", "adapters[1].scale"),
        ("routing_key", "user"), ("prompt_token_ids", "prompt"), ("", None),
        ("tools[2].name", "tools[2].function.name"),
        ("tools[0].parameters", "tools[0].function.parameters"), ("tools", "tools"),
        ("tools[0].type", "tools[0].type"), ("tools[0].function", "tools[0].function"),
        ("messages[1].tool_calls[0].arguments", "messages[1].tool_calls[0].function.arguments"),
        ("tool_choice.name", "tool_choice.function.name"), ("tool_choice", "tool_choice"),
    ],
)  # fmt: skip
def test_fields_are_called_as_in_the_request(field: str, param: str | None) -> None:
    _, error, _ = reported(errors.InvalidArgumentError("x", reason="INVALID_FIELD", field=field))
    assert error["param"] == param


@pytest.mark.parametrize(
    ("field", "message", "said"),
    [
        ("routing_key", "routing_key is 'x'; expected y", "user is 'x'; expected y"),
        ("prompt_token_ids", "prompt_token_ids has 9 tokens", "prompt has 9 tokens"),
        ("sampling.include_stop", "sampling.include_stop is x", "include_stop_str_in_output is x"),
        ("adapters[1].weight", "adapters[1].weight is 'weight'", "adapters[1].scale is 'weight'"),
        ("tools[1].name", "tools[1].name is 'tools[1].name'",
         "tools[1].function.name is 'tools[1].name'"),
        ("messages[0].role", "messages[0].role is 'routing_key'",
         "messages[0].role is 'routing_key'"),
        ("messages", "messages is text; set prompt_token_ids",
         "messages is text; set token ids as prompt"),
        ("prediction", "prediction is text; set prediction_token_ids",
         "prediction is text; leave it out"),
        ("adapter", "adapter a/b:1 cannot be used", "adapter a/b:1 cannot be used"),
        ("", "no field", "no field"),
    ],
)  # fmt: skip
def test_messages_call_them_so_as_well(field: str, message: str, said: str) -> None:
    _, error, _ = reported(
        errors.InvalidArgumentError(message, reason="INVALID_FIELD", field=field)
    )
    assert error["message"] == said


def seen(*headers: tuple[str, str]) -> Caller:
    raw: Sequence[tuple[bytes, bytes]] = [(k.encode(), v.encode("latin-1")) for k, v in headers]
    return caller_of({"type": "http", "headers": raw})


def test_what_a_caller_brings_goes_along() -> None:
    brought = [
        ("authorization", "Bearer lmx_a_b"), ("x-request-id", "7"), ("traceparent", "00-a-b-01"),
        ("tracestate", "a=b"),
    ]  # fmt: skip
    found = seen(*brought, ("cookie", "x"))
    assert set(found.metadata) == set(brought)
    assert found.returned == {"x-request-id": "7", "traceparent": "00-a-b-01"}
    assert found.key == "Bearer lmx_a_b"


@pytest.mark.parametrize("value", ["", "x" * 1025, "\u00e4", "a\tb"])
def test_what_grpc_cannot_carry_stays_behind(value: str) -> None:
    found = seen(("authorization", value), ("x-request-id", value), ("traceparent", value))
    assert [name for name, _ in found.metadata] == ["x-request-id"]
    assert len(found.request_id) == 24


def test_of_two_keys_none_is_chosen() -> None:
    found = seen(("authorization", "Bearer a"), ("authorization", "Bearer b"))
    assert found.key == ""


def test_a_key_may_be_shown_as_anthropics_clients_do() -> None:
    assert seen(("x-api-key", "lmx_a_b")).key == "Bearer lmx_a_b"
    assert seen(("x-api-key", "lmx_a_b"), ("authorization", "Bearer c")).key == "Bearer c"
    assert seen(("x-api-key", "a"), ("authorization", "x" * 1025)).key == ""
    assert seen(("x-api-key", "a"), ("x-api-key", "b")).key == ""
    assert seen(("x-api-key", "x" * 1025)).key == ""
