"""What is refused, and what is not: one corpus of requests over the real socket.

The server has no such thing for the rows that are missing here:
D15 adapter versions; D16 and half of D19 tenants; D17 quarantine; D23 enums in requests; D26 a
batch call; E07 typical_p; E16 allowed_token_ids; E21 an interval of streaming. D12 (a tokenizer
that knows more than the model) is in test_failures.py and D18 (bytes damaged on disk) in
test_uploads.py, because they need servers of their own.
"""

import itertools
import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from loramux import Client, Generation
from loramux.errors import AlreadyExistsError, DeadlineExceededError, LoramuxError
from loramux.v1.generation_pb2 import (
    COMBINATION_CAT,
    COMBINATION_LINEAR,
    ChatMessage,
    Choice,
    GenerateRequest,
    SamplingParams,
    StructuredOutput,
    Tool,
    WeightedAdapter,
)
from tests.conftest import ADAPTERS
from tests.support.polling import eventually
from tests.support.server import RunningServer
from tests.support.unread import held
from tests.support.wire import GENERATE, STREAM_GENERATE, refusal, send

CONTEXT = 256
VOCAB = 259
TURN = ChatMessage(role="user", content="hello")
NAN, INF = float("nan"), float("inf")
INVALID = grpc.StatusCode.INVALID_ARGUMENT


@pytest.fixture(scope="module")
def channel(tiny_server: RunningServer) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(tiny_server.target) as channel:
        yield channel


@pytest.fixture(scope="module")
def client(tiny_server: RunningServer) -> Iterator[Client]:
    with tiny_server.client() as client:
        yield client


def request(sampling: dict[str, Any] | None = None, **fields: Any) -> GenerateRequest:
    if not {"prompt", "prompt_token_ids", "messages"} & set(fields):
        fields["prompt"] = "hello"
    return GenerateRequest(sampling=SamplingParams(**(sampling or {})), **fields)


def part(adapter: str, weight: float | None = None) -> WeightedAdapter:
    return WeightedAdapter(adapter=adapter, weight=weight)


def row(
    name: str, message: GenerateRequest, field: str, says: str, reason: str = "INVALID_FIELD",
    code: grpc.StatusCode = INVALID,
) -> Any:  # fmt: skip
    return pytest.param(message, field, says, reason, code, id=name)


def sampling_row(name: str, says: object, /, **sampling: Any) -> Any:
    """A row whose first sampling field is at fault, with a value that is shown as `says`."""
    field = next(iter(sampling))
    return row(f"{name}-{field}-{says}", request(sampling), f"sampling.{field}", str(says))


MIXES: list[tuple[GenerateRequest, str, str]] = [
    (request(adapter="small", adapters=[part("wide")]), "adapters", "both set"),
    (request(adapters=[part("small")] * 5), "adapters", "5 entries"),
    (request(adapters=[part("small"), part("")]), "adapters[1].adapter", "''"),
    (request(adapters=[part("small"), part("small:1", 0.5)]), "adapters[1].adapter", "small:1"),
    (request(adapters=[part("small")], combination=9), "combination", "9"),
    (request(adapter="small", combination=COMBINATION_CAT), "combination", "COMBINATION_CAT"),
    (request(scale=0.5), "scale", "0.5"),
    (request(adapters=[part("small")], scale=0.5), "scale", "0.5"),
    *(
        (request(adapters=[part("wide"), part("small", value)]), "adapters[1].weight", str(value))
        for value in (10.5, -11.0, NAN, INF)
    ),
    *(
        (request(adapter="small", scale=value), "scale", str(value))
        for value in (10.5, -11.0, NAN, INF)
    ),
]

PREDICTIONS: list[tuple[str, Any, str, dict[str, Any]]] = [
    ("prediction", "a", "both set", {"prediction_token_ids": [5]}),
    ("prediction", "a " * (257 << 9), "263168 bytes; expected at most 262144", {}),
    ("prediction", "a" * 70_000, "70000 characters", {}),
    ("prediction", "a" * (CONTEXT + 1), "257 tokens; expected at most 256", {}),
    ("prediction_token_ids", [5] * (CONTEXT + 1), "257 tokens; expected at most 256", {}),
    *(
        ("prediction_token_ids", [5, token], f"{token}; expected ids from 0 to {VOCAB - 1}", {})
        for token in (-1, VOCAB, 2**63 - 1)
    ),
]

FIELDS = [
    row("D01-empty", request(prompt=""), "prompt", "all empty"),
    row("D02-both", request(prompt="a", prompt_token_ids=[1]), "prompt", "both set"),
    row("D04-256-KiB", request(prompt="a " * (1 << 17) + "a"), "prompt", "262145 bytes"),
    *(
        row(
            f"D05-{count}-tokens", request(prompt_token_ids=[5] * count), "prompt_token_ids",
            f"{count} tokens", "CONTEXT_LENGTH_EXCEEDED",
        )
        for count in (CONTEXT, CONTEXT + 1)
    ),
    *(
        row(
            f"D05-text-of-{count}-tokens",
            request(prompt="a" * (count - 1)),  # and the tokenizer's prefix
            "prompt", f"{count} tokens", "CONTEXT_LENGTH_EXCEEDED",
        )
        for count in (CONTEXT, CONTEXT + 1)
    ),
    row(
        "D06-no-room", request({"max_tokens": 253}, prompt="abc"), "sampling.max_tokens", "253",
        "CONTEXT_LENGTH_EXCEEDED",
    ),
    row("D07-long-run", request(prompt="a" * 100_000), "prompt", "100000 characters"),
    row("D07-carets", request(prompt="^" * 1_000_000), "prompt", "1000000 bytes"),
    row("D07-no-space", request(prompt="x" * (65 << 10)), "prompt", "66560 characters"),
    row(
        "D09-many-marks", request(prompt="e" + "\u0301" * 10_000), "prompt", "20002 tokens",
        "CONTEXT_LENGTH_EXCEEDED",
    ),
    *(
        row(
            f"D11-token-{token}", request(prompt_token_ids=[5, token]), "prompt_token_ids",
            str(token),
        )
        for token in (-1, VOCAB, 2**31 - 1, 2**63 - 1)
    ),
    *(
        row(f"prediction-{number}", request(**{field: value}, **more), field, says)
        for number, (field, value, says, more) in enumerate(PREDICTIONS)
    ),
    row(
        "D13-unknown", request(adapter="nobody"), "adapter", "'nobody'", "ADAPTER_NOT_FOUND",
        grpc.StatusCode.NOT_FOUND,
    ),
    *(
        row(f"D14-{number}", request(adapter=name), "adapter", says)
        for number, (name, says) in enumerate(
            [
                ("Upper", "'Upper'"),
                ("../small", "'../small'"),
                ("small/1/2", "'small/1/2'"),
                ("small:", "'small:'"),
                ("small@sha256:0", "'small@sha256:0'"),
                ("small ", "'small '"),
                ("small\n", r"'small\n'"),
                ("-small", "'-small'"),
                ("sm\u00e4ll", r"'sm\xe4ll'"),
                ("a" * 64, "64 characters"),
            ]
        )
    ),
    *(
        row(f"mix-{number}", message, field, says)
        for number, (message, field, says) in enumerate(MIXES)
    ),
    row(
        "mix-of-ranks",
        request(adapters=[part("small"), part("wide")], combination=COMBINATION_LINEAR),
        "combination", "4, 13", "ADAPTER_NOT_MIXABLE",
        grpc.StatusCode.FAILED_PRECONDITION,
    ),
    row("D20-long", request(request_id="i" * 1024), "request_id", "iiii"),
    row("D20-control", request(request_id="a\x00b\x1b[31m"), "request_id", r"a\x00b\x1b[31m"),
]  # fmt: skip

SAMPLING = [
    *(sampling_row("E01", v, max_tokens=v) for v in (0, -1, CONTEXT + 1, 2**31 - 1)),
    sampling_row("E02", 5, min_tokens=5, max_tokens=4),
    sampling_row("E02", -1, min_tokens=-1),
    sampling_row("E02", CONTEXT + 1, min_tokens=CONTEXT + 1),
    *(sampling_row("E03", v, temperature=v) for v in (-0.125, NAN, INF, 101.0)),
    *(sampling_row("E05", v, top_p=v) for v in (0.0, -1.0, 1.0625, NAN)),
    *(sampling_row("E06", v, top_k=v) for v in (-2, VOCAB + 1)),
    *(sampling_row("E07", v, min_p=v) for v in (-0.125, 1.125, NAN)),
    *(sampling_row("E08", v, repetition_penalty=v) for v in (0.0, -1.0, INF, NAN, 1024.0)),
    sampling_row("E08", "e-45", repetition_penalty=1e-45),
    *(sampling_row("E09", v, presence_penalty=v) for v in (-2.125, 2.125, NAN, -INF)),
    *(sampling_row("E09", v, frequency_penalty=v) for v in (-2.125, 2.125, NAN, INF)),
    *(sampling_row("E10", v, n=v) for v in (0, -1, 65, 2**31 - 1)),
    sampling_row("E11", "9 strings", stop=["x"] * 9),
    sampling_row("E11", "ssss", stop=["s" * 257]),
    sampling_row("E11", "''", stop=["x", ""]),
    *(sampling_row("E13", v, stop_token_ids=[5, v], min_tokens=1) for v in (-1, VOCAB, 2**63 - 1)),
    sampling_row("E13", "129 tokens", stop_token_ids=[5] * 129, min_tokens=1),
    *(sampling_row("E14", v, logit_bias={v: 1.0}) for v in (-1, VOCAB, 2**63 - 1)),
    sampling_row("E14", "301 entries", logit_bias=dict.fromkeys(range(301), 1.0)),
    *(
        row(f"E14-value-{v}", request({"logit_bias": {7: v}}), "sampling.logit_bias[7]", str(v))
        for v in (NAN, INF, 128.0)
    ),
    *(sampling_row("E17", v, logprobs=v) for v in (21, -1)),
    *(sampling_row("E17", v, prompt_logprobs=v) for v in (21, -1)),
    sampling_row("E01", -1, max_tokens=-1, prompt_logprobs=0),
    sampling_row("E10", 2, n=2, max_tokens=0, prompt_logprobs=0),
]


def form_row(name: str, says: str, field: str | None = None, /, **form: Any) -> Any:
    """A row of a form that is at fault, of one kind."""
    kind = field or next(iter(form))
    wanted = request({"structured_output": StructuredOutput(**form)})
    return row(f"form-{name}", wanted, f"sampling.structured_output.{kind}", says)


def texts(*found: str) -> Choice:
    return Choice(texts=found)


def with_form(**sampling: Any) -> GenerateRequest:
    return request({"structured_output": StructuredOutput(regex="a"), **sampling})


FORMS = [
    row(
        "form-none",
        request({"structured_output": StructuredOutput()}),
        "sampling.structured_output",
        "one of json_schema",
    ),
    row("form-ignore-eos", with_form(ignore_eos=True), "sampling.ignore_eos", "True"),
    row("form-min-tokens", with_form(min_tokens=2), "sampling.min_tokens", "2"),
    form_row("no-object", "False", json_object=False),
    form_row("no-schema", "''", json_schema=""),
    form_row("no-json", "is not valid JSON", json_schema='{"type": '),
    form_row("nan-cut-off", "'{\\x00'", json_schema="{\x00"),
    form_row("list", "a JSON object", json_schema="[]"),
    form_row("nesting", "deeper than 63", json_schema='{"items":' * 64 + "{}" + "}" * 64),
    form_row("nesting-without-end", "deeper than 63", json_schema="[" * 30_000),
    form_row("65-KiB", "66560 bytes", json_schema='{"const":"' + "x" * (66560 - 12) + '"}'),
    form_row("type", "texts", json_schema='{"type": "texts"}'),
    form_row("keyword", "uniqueItems", json_schema='{"uniqueItems": true}'),
    form_row("remote", "does not fetch", json_schema='{"$ref": "http://127.0.0.1:9/a"}'),
    form_row("options", "'x-guidance'", json_schema='{"\\u0078-guidance": {}}'),
    form_row("never", "Unsatisfiable", json_schema='{"type": "string", "enum": [1]}'),
    form_row("empty", "''", regex=""),
    form_row("group", "unclosed group", regex="("),
    form_row("look-around", "look-around", regex="(?<=a)b"),
    form_row("no-text", "no text can match", regex=r"[^\s\S]"),
    form_row("long", "65537 bytes", regex="a" * 65537),
    form_row("wide", "65538 bytes", regex="é" * 32769),
    form_row("no-choice", "0 texts", "choice.texts", choice=texts()),
    form_row("empty-choice", "has an empty text", "choice.texts", choice=texts("a", "")),
    form_row("choices", "1025 texts", "choice.texts", choice=texts(*["a"] * 1025)),
    form_row("long-choices", "66000 bytes", choice=texts(*["a" * 660] * 100)),
    form_row("spaces", r"' \n'", grammar=" \n"),
    form_row("rule", "other", grammar="start: other"),
    form_row("schema-inside", "%json", grammar='start: "a" | %json {"type": "array"}'),
    form_row("controls", "only control tokens", grammar="start: <[0]>"),
    form_row("no-start", "no start rule", grammar='other: "a"'),
    form_row(
        "stack",
        "memory limit",
        grammar="\n".join(["start: r0", *(f"r{i}: r{i + 1}" for i in range(5000))]),
    ),
]


def beams_row(name: str, says: object, field: str | None = None, /, **sampling: Any) -> Any:
    """A row of what does not go with a beam search, with a value that is shown as `says`."""
    field = field or next(iter(sampling))
    wanted = request({"num_beams": 4, **sampling})
    return row(f"beams-{name}", wanted, f"sampling.{field}", str(says))


BEAMS = [
    *(beams_row(f"{v}", v, num_beams=v) for v in (0, -1, 11, 2**31 - 1)),
    *(beams_row(f"penalty-{v}", v, length_penalty=v) for v in (10.5, -11.0, NAN, INF)),
    *(
        row(f"beams-none-{name}", request({name: value}), f"sampling.{name}", str(value))
        for name, value in (("length_penalty", 1.0), ("early_stopping", False))
    ),
    beams_row("more-completions", "5; expected at most num_beams, 4", n=5),
    beams_row("temperature", "0.5; expected 0 or none with num_beams, 4", temperature=0.5),
    beams_row("top-k", "7", top_k=7),
    beams_row("top-p", "0.5", top_p=0.5),
    beams_row("min-p", "0.25", min_p=0.25),
    beams_row("repetition", "1.5; expected 1 or none", repetition_penalty=1.5),
    beams_row("presence", "0.5", presence_penalty=0.5),
    beams_row("frequency", "-0.5", frequency_penalty=-0.5),
    beams_row("logprobs", "0", logprobs=0),
    beams_row("prompt-logprobs", "0", prompt_logprobs=0),
    beams_row("no-tokens", "0", "prompt_logprobs", prompt_logprobs=0, max_tokens=0),
    beams_row("bias", "{7: 1.0}", logit_bias={7: 1.0}),
    beams_row("stop", "['END']; expected none (stop_token_ids are supported)", stop=["END"]),
    beams_row("form", "'regex'", structured_output=StructuredOutput(regex="a")),
    row("beams-tools", request({"num_beams": 2}, messages=[TURN],
                               tools=[Tool(name="look_up")]), "tools", "['look_up']"),
    row("beams-prediction", request({"num_beams": 2}, prediction="a b"), "prediction", "'a b'"),
    row(
        "beams-predicted-tokens", request({"num_beams": 2}, prediction_token_ids=[5, 6]),
        "prediction_token_ids", "[5, 6]",
    ),
]  # fmt: skip


@pytest.mark.parametrize("method", [GENERATE, STREAM_GENERATE], ids=["whole", "stream"])
@pytest.mark.parametrize(
    ("message", "field", "says", "reason", "code"), [*FIELDS, *SAMPLING, *FORMS, *BEAMS]
)
def test_a_bad_field_is_refused_by_name(
    channel: grpc.Channel, client: Client, message: GenerateRequest, field: str, says: str,
    reason: str, code: grpc.StatusCode, method: str,
) -> None:  # fmt: skip
    with pytest.raises(grpc.RpcError) as caught:
        send(channel, method, message.SerializeToString())
    refused = refusal(caught.value)
    assert (refused.code, refused.reason, refused.field) == (code, reason, field)
    assert field in refused.message
    assert says in refused.message
    assert len(refused.message) < 400
    assert refused.retry_delay is None
    assert client.generate("control", max_tokens=1).token_ids


PROMPT_FIELD = 2
GARBAGE = {
    "D08-not-utf-8": b"\x12\x02\xff\xfe",
    "D08-overlong": b"\x12\x02\xc0\x80",
    "D08-lone-surrogate": b"\x12\x03\xed\xa0\xbd",
    "D22-varint-cut-off": b"\x18\x80",
    "D22-varint-of-11-bytes": b"\x18" + b"\xff" * 11,
    "D22-string-longer-than-the-message": b"\x12\x7fabc",
    "D22-length-of-2-63": b"\x12" + b"\xff" * 9 + b"\x7f",
    "D22-field-number-0": b"\x02\x01a",
    "D22-wire-type-7": b"\x17",
    "D22-groups-never-closed": b"\x0b" * 10_000,
    "D22-groups-10000-deep": b"\x0b" * 10_000 + b"\x0c" * 10_000,
    "D22-group-closed-by-another": b"\x0b\x14",
    **{f"D22-random-{seed}": random.Random(seed).randbytes(64) for seed in range(20)},
}


@pytest.mark.parametrize("method", [GENERATE, STREAM_GENERATE], ids=["whole", "stream"])
@pytest.mark.parametrize("raw", GARBAGE.values(), ids=GARBAGE.keys())
def test_bytes_that_are_no_request_are_refused(
    channel: grpc.Channel, client: Client, raw: bytes, method: str
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        send(channel, method, raw)
    refused = refusal(caught.value)
    assert (refused.code, refused.reason, refused.field) == (INVALID, "MALFORMED_REQUEST", "")
    assert "loramux.v1.GenerateRequest" in refused.message
    assert client.generate("control", max_tokens=1).token_ids


def test_a_field_of_the_wrong_wire_type_is_as_if_absent(channel: grpc.Channel) -> None:
    # D22: to the format this is an unknown field, so what is missing is the prompt.
    with pytest.raises(grpc.RpcError) as caught:
        send(channel, GENERATE, bytes([PROMPT_FIELD << 3, 1]))
    refused = refusal(caught.value)
    assert (refused.code, refused.reason, refused.field) == (INVALID, "INVALID_FIELD", "prompt")


def test_fields_of_a_later_version_are_ignored(channel: grpc.Channel) -> None:
    message = request({"max_tokens": 1}).SerializeToString()
    assert send(channel, GENERATE, message + b"\xfa\x3f\x03abc\xc0\x3e\x05")  # D21


def test_a_refusal_costs_no_more_than_looking(channel: grpc.Channel) -> None:
    """E10: whatever a field asks for, nothing is allocated for it before it is checked."""
    message = request({"n": 2**31 - 1, "max_tokens": 2**31 - 1}).SerializeToString()
    begin = time.monotonic()
    for _ in range(20):
        with pytest.raises(grpc.RpcError):
            send(channel, GENERATE, message)
    assert (time.monotonic() - begin) / 20 < 1  # 5 ms promised


def test_a_million_bad_token_ids_are_refused_at_once(channel: grpc.Channel, client: Client) -> None:
    message = request(prompt_token_ids=[VOCAB] * 1_000_000).SerializeToString()
    with pytest.raises(grpc.RpcError) as caught:
        send(channel, GENERATE, message)
    assert refusal(caught.value).reason == "CONTEXT_LENGTH_EXCEEDED"
    assert client.generate("control", max_tokens=1).token_ids


def test_a_message_above_4_mib_is_refused_by_the_transport(
    channel: grpc.Channel, client: Client
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        send(channel, GENERATE, request(prompt="a" * (4 << 20)).SerializeToString())
    assert refusal(caught.value).code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert client.generate("control", max_tokens=1).token_ids


FINE = {
    "D03-white-space": request({}, prompt=" \t\n\r "),
    "D05-all-but-one-token": request(prompt_token_ids=[5] * (CONTEXT - 1)),
    "D09-nul": request(prompt="a\x00b"),
    "D09-byte-order-mark": request(prompt="\ufeffa"),
    "D09-combining-marks": request(prompt="e" + "\u0301" * 100),
    "D09-right-to-left": request(prompt="\u202e\u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d"),
    "D09-private-use-and-noncharacters": request(prompt="\U0010ffff\ue000\ufffe"),
    "D19-base-model": request(adapter=""),
    "D20-128-characters": request(request_id="\u00e4" * 128),
    "E03-tiny-temperature": request({"temperature": 1e-45}),
    "E03-largest-temperature": request({"temperature": 100.0}),
    "E04-minus-zero": request({"temperature": -0.0}),
    "E05-tiny-top-p": request({"top_p": 1e-45}),
    "E06-all-of-the-vocabulary": request({"top_k": VOCAB}),
    "E06-minus-one": request({"top_k": -1}),
    "E07-min-p-one": request({"min_p": 1.0}),
    "E08-least-repetition-penalty": request({"repetition_penalty": 0.001}),
    "E08-largest-repetition-penalty": request({"repetition_penalty": 100.0}),
    "E10-64-completions": request({"n": 64}),
    "E11-8-long-stops": request({"stop": [chr(97 + i) * 256 for i in range(8)]}),
    "E12-stop-that-never-comes": request({"stop": ["\u20ac\U0001f600" * 20]}),
    "E13-128-stop-tokens": request({"stop_token_ids": range(128), "min_tokens": 2}),
    "E15-every-token-disfavoured": request({"logit_bias": dict.fromkeys(range(VOCAB), -100.0)}),
    "E15-every-token-but-the-end": request(
        {"logit_bias": {token: -100.0 for token in range(VOCAB) if token != 2}}
    ),
    "E17-20-logprobs": request({"logprobs": 20}),
    "E17-0-logprobs": request({"logprobs": 0}),
    "beams-1-and-a-temperature": request({"num_beams": 1, "temperature": 0.5, "top_k": 3, "n": 2}),
    "beams-1-and-a-penalty": request({"num_beams": 1, "length_penalty": 2.0}),
    "beams-10-and-128-stop-tokens": request(
        {"num_beams": 10, "n": 8, "stop_token_ids": range(128)}
    ),
    "beams-with-what-changes-nothing": request(
        {
            "num_beams": 2,
            "temperature": 0.0,
            "top_k": -1,
            "top_p": 1.0,
            "min_p": 0.0,
            "seed": 1,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
        }
    ),
    "beams-of-a-token": request({"num_beams": 10, "n": 8, "max_tokens": 1}),
    "beams-to-the-end-of-the-context": request(
        {"num_beams": 3}, prompt_token_ids=[5] * (CONTEXT - 2)
    ),
    "prediction-of-a-context": request(prediction="a" * CONTEXT),
    "prediction-of-a-context-of-tokens": request(prediction_token_ids=[5] * CONTEXT),
    "prediction-of-nothing": request(prediction="", prediction_token_ids=[]),
    "prediction-of-nul": request(prediction="a\x00</s>"),
    "prediction-of-no-tokens": request({"max_tokens": 0, "prompt_logprobs": 0}, prediction="a"),
    "E17-20-prompt-logprobs": request({"prompt_logprobs": 20}),
    "E17-0-prompt-logprobs": request({"prompt_logprobs": 0, "max_tokens": 0}),
    **{f"E18-seed-{seed}": request({"seed": seed, "n": 2}) for seed in (2**63 - 1, -(2**63), 0)},
    "E19-nothing-left-by-the-bias": request(
        {"logit_bias": dict.fromkeys(range(VOCAB), -100.0), "top_p": 1e-6, "top_k": 1, "min_p": 1.0}
    ),
}


@pytest.mark.parametrize("method", [GENERATE, STREAM_GENERATE], ids=["whole", "stream"])
@pytest.mark.parametrize("message", FINE.values(), ids=FINE.keys())
def test_an_odd_request_is_answered(
    channel: grpc.Channel, message: GenerateRequest, method: str
) -> None:
    send(channel, method, message.SerializeToString(), timeout=None)  # D25: without a deadline


def test_text_that_looks_like_a_control_token_is_plain_text(client: Client) -> None:
    """D10."""
    for text in ("</s>", "<s>", "<pad>", "<|im_end|>"):
        plain = client.generate(text, max_tokens=1)
        assert plain.usage.prompt_tokens == 1 + len(text)
    as_text = client.generate("</s>", max_tokens=8, temperature=0.0)
    as_control = client.generate("</s>", max_tokens=8, temperature=0.0, parse_special_tokens=True)
    assert as_control.usage.prompt_tokens == 2
    assert as_text.token_ids != as_control.token_ids
    assert as_control.token_ids == client.generate([1, 2], max_tokens=8, temperature=0.0).token_ids


def test_the_prefix_of_the_tokenizer_can_be_left_out(client: Client) -> None:
    assert client.generate("abc", max_tokens=1).usage.prompt_tokens == 4
    bare = client.generate("abc", max_tokens=1, add_special_tokens=False)
    assert bare.usage.prompt_tokens == 3


def test_a_request_id_is_taken_while_its_request_runs(
    tiny_server: RunningServer, client: Client
) -> None:
    """D20."""
    with held(tiny_server.target, request_id="twice") as stream:
        assert stream.first.request_id == "twice"
        with pytest.raises(AlreadyExistsError, match="'twice'") as caught:
            client.generate("hello", request_id="twice")
        assert (caught.value.reason, caught.value.field) == ("REQUEST_EXISTS", "request_id")

    def is_free() -> bool:
        try:
            return client.generate("hello", request_id="twice", max_tokens=1).request_id == "twice"
        except AlreadyExistsError:
            return False

    assert eventually(is_free)


@pytest.mark.parametrize("timeout", [-1.0, 0.0, 0.001])
def test_a_deadline_that_cannot_be_kept_is_exceeded(client: Client, timeout: float) -> None:
    """D24."""
    with pytest.raises(DeadlineExceededError):
        client.generate("hello", timeout=timeout, max_tokens=200, ignore_eos=True)
    with pytest.raises(DeadlineExceededError):
        list(client.stream("hello", timeout=timeout, max_tokens=200, ignore_eos=True))
    assert client.generate("control", max_tokens=1).token_ids


FEATURES: dict[str, list[Any]] = {
    "adapter": list(ADAPTERS),
    "max_tokens": [1, 6],
    "min_tokens": [1],
    "temperature": [0.0, 1e-45, 0.7, 100.0],
    "top_k": [-1, 1, 5, VOCAB],
    "top_p": [1e-45, 0.5, 1.0],
    "min_p": [1e-45, 0.3, 1.0],
    "repetition_penalty": [0.001, 1.3, 100.0],
    "presence_penalty": [-2.0, 2.0],
    "frequency_penalty": [-2.0, 2.0],
    "logit_bias": [{70: 100.0}, {2: 100.0}, dict.fromkeys(range(VOCAB), -100.0)],
    "seed": [-(2**63)],
    "stop": [["a"], ["abc", "\u20ac"]],
    "stop_token_ids": [list(range(128))],
    "ignore_eos": [True],
    "include_stop": [True],
    "n": [1, 3],
    "logprobs": [0, 20],
    "prompt_logprobs": [0, 20],
    "skip_special_tokens": [False, True],
    "prediction": ["hello", [70, 2, 70]],
    "regex": ["[a-z]{3}"],
}
OPEN = {"min_tokens", "ignore_eos"}
"""What cannot be beside a form."""


def test_every_pair_of_features_works_together(tiny_server: RunningServer, client: Client) -> None:
    """E20."""
    settings = [(name, value) for name, values in FEATURES.items() for value in values]
    combinations: list[dict[str, Any]] = [
        dict(pair) for pair in itertools.combinations(settings, 2) if pair[0][0] != pair[1][0]
    ]
    # And more than two at once.
    chosen = random.Random(20)
    combinations += [
        {name: chosen.choice(values) for name, values in FEATURES.items() if chosen.random() < 0.6}
        for _ in range(100)
    ]
    combinations = [
        {
            name: value
            for name, value in options.items()
            if "regex" not in options or name not in OPEN
        }
        for options in combinations
    ]
    engine = tiny_server.engine_pid

    def generate(options: dict[str, Any]) -> Generation | str:
        try:
            return client.generate("hello", **{"max_tokens": 4, **options})
        except LoramuxError as error:
            return f"{options}: {error}"

    with ThreadPoolExecutor(32) as pool:
        results = list(pool.map(generate, combinations))
    assert len(results) >= 200
    assert [result for result in results if isinstance(result, str)] == []
    for options, result in zip(combinations, results, strict=True):
        assert isinstance(result, Generation)
        assert len(result.completions) == options.get("n", 1)
        for completion in result.completions:
            num_tokens = len(completion.token_ids)
            assert options.get("min_tokens", 0) <= num_tokens <= options.get("max_tokens", 4)
            assert len(completion.logprobs) == (num_tokens if "logprobs" in options else 0)
    assert tiny_server.engine_pid == engine
