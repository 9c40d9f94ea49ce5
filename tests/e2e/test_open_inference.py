"""The Open Inference Protocol over a real socket: models, texts, streams, and what is refused."""

import json
import queue
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from loramux import Client, __version__
from loramux_server.access.caller import Role
from loramux_server.inference import open_inference_pb2 as pb
from loramux_server.observe.call_record import REQUEST_ID_KEY
from loramux_server.store.catalog import Catalog
from loramux_server.store.policy import Policy
from tests.conftest import ADAPTERS
from tests.support.access import shown
from tests.support.observed import Observed
from tests.support.open_inference import (
    as_raw,
    asking,
    call,
    numbers_of,
    packed,
    set_parameter,
    texts_of,
)
from tests.support.polling import eventually
from tests.support.server import RunningServer
from tests.support.wire import Refusal, refusal

if TYPE_CHECKING:
    from tests.support.heads import Served

BASE = "tiny"
GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": 12, "ignore_eos": True}
ONLY_OUTPUT = {"exclude_input_in_output": True}
STREAM = {"stream": True}
INVALID, NOT_FOUND = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND


@pytest.fixture(scope="module")
def channel(tiny_server: RunningServer) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(tiny_server.target) as channel:
        yield channel


@pytest.fixture(scope="module")
def client(tiny_server: RunningServer) -> Iterator[Client]:
    with tiny_server.client() as client:
        yield client


def infer(channel: grpc.Channel, request: pb.ModelInferRequest) -> pb.ModelInferResponse:
    response: pb.ModelInferResponse = call(channel, "ModelInfer", request)
    return response


def is_ready(channel: grpc.Channel, name: str, version: str = "") -> bool:
    request = pb.ModelReadyRequest(name=name, version=version)
    return bool(call(channel, "ModelReady", request).ready)


def test_the_server_says_what_it_is(channel: grpc.Channel) -> None:
    assert call(channel, "ServerLive", pb.ServerLiveRequest()).live
    assert call(channel, "ServerReady", pb.ServerReadyRequest()).ready
    reported = call(channel, "ServerMetadata", pb.ServerMetadataRequest())
    assert (reported.name, reported.version, list(reported.extensions)) == (
        "loramux", __version__, ["parameters"],
    )  # fmt: skip


def test_models_are_the_base_and_each_adapter(channel: grpc.Channel) -> None:
    for name in (BASE, *ADAPTERS, "public/small"):
        assert is_ready(channel, name)
    assert is_ready(channel, "small", "1")
    assert is_ready(channel, "small", "latest")
    for name, version in (
        ("nobody", ""), ("small", "2"), ("small", "stable"), ("small", "01"), ("small:1", ""),
        (BASE, "1"), ("Small", ""), ("", ""), ("other/small", ""),
    ):  # fmt: skip
        assert not is_ready(channel, name, version), (name, version)


def test_what_does_not_continue_text_is_no_model(served_heads: "Served") -> None:
    with grpc.insecure_channel(served_heads.server.target) as channel:
        with served_heads.server.client() as client:
            tasks = {adapter.name: adapter.task for adapter in client.adapters.list()}
        assert {"SEQ_CLS", ""} <= set(tasks.values())
        for name, task in tasks.items():
            assert is_ready(channel, name) is (task == "")
        name = next(name for name, task in tasks.items() if task == "SEQ_CLS")
        for method, request, field in (
            ("ModelMetadata", pb.ModelMetadataRequest(name=name), "name"),
            ("ModelInfer", asking(name, "a"), "model_name"),
        ):
            with pytest.raises(grpc.RpcError, match="ClassificationService") as caught:
                call(channel, method, request)
            refused = refusal(caught.value)
            assert refused.code is grpc.StatusCode.FAILED_PRECONDITION
            assert (refused.reason, refused.field) == ("ADAPTER_TASK_MISMATCH", field)


def test_metadata_name_every_tensor(channel: grpc.Channel) -> None:
    reported = call(channel, "ModelMetadata", pb.ModelMetadataRequest(name="small"))
    assert (reported.name, list(reported.versions), reported.platform) == (
        "small",
        ["1"],
        "loramux_peft",
    )
    inputs = {each.name: (each.datatype, list(each.shape)) for each in reported.inputs}
    assert inputs["text_input"] == ("BYTES", [-1])
    assert inputs["stream"] == inputs["exclude_input_in_output"] == ("BOOL", [1])
    outputs = {each.name: (each.datatype, list(each.shape)) for each in reported.outputs}
    assert outputs["text_output"] == ("BYTES", [-1])
    # What is told is what comes.
    answer = infer(channel, asking("small", "hello", parameters=GREEDY))
    assert {each.name: each.datatype for each in answer.outputs} == {
        name: datatype for name, (datatype, _) in outputs.items()
    }
    base = call(channel, "ModelMetadata", pb.ModelMetadataRequest(name=BASE))
    assert (list(base.versions), base.platform) == ([], "loramux_transformers")


def test_each_model_answers_as_it_does_to_our_client(channel: grpc.Channel, client: Client) -> None:
    for name in (BASE, *ADAPTERS):
        ours = client.generate("hello", adapter=None if name == BASE else name, **GREEDY)
        request = asking(name, "hello", id="seven", parameters=GREEDY, flags=ONLY_OUTPUT)
        answer = infer(channel, request)
        assert texts_of(answer) == [ours.text]
        assert texts_of(answer, "finish_reason") == ["length"]
        assert numbers_of(answer, "num_input_tokens") == [len("hello") + 1]  # and the prefix <s>
        assert numbers_of(answer, "num_output_tokens") == [12]
        assert (answer.model_name, answer.id) == (name, "seven")
        if ours.adapter is None:
            assert (answer.model_version, len(answer.parameters)) == ("", 0)
        else:
            assert answer.model_version == "1"
            assert answer.parameters["adapter_digest"].string_param == ours.adapter.digest


def test_the_text_comes_before_what_is_made_of_it(channel: grpc.Channel, client: Client) -> None:
    made = client.generate("hello", adapter="wide", **GREEDY).text
    for flags, expected in (
        ({}, "hello" + made),
        ({"exclude_input_in_output": False}, "hello" + made),
        (ONLY_OUTPUT, made),
    ):
        answer = infer(channel, asking("wide", "hello", parameters=GREEDY, flags=flags))
        assert texts_of(answer) == [expected]


@pytest.mark.parametrize("shape", [[5], [5, 1]])
def test_each_text_is_a_request_and_answers_come_in_order(
    tiny_server: RunningServer, channel: grpc.Channel, client: Client, shape: list[int]
) -> None:
    texts = [f"{'prompt ' * (1 + i % 3)}{i}" for i in range(5)]
    lengths = [3 + i for i in range(5)]
    alone = [
        client.generate(text, adapter="rs", **GREEDY | {"max_tokens": length})
        for text, length in zip(texts, lengths, strict=True)
    ]
    series = 'loramux_requests_total{adapter="rs",outcome="ok"}'
    before = tiny_server.metrics()[series]
    sampling = [json.dumps(GREEDY | {"max_tokens": length}) for length in lengths]
    request = asking("rs", *texts, shape=shape, sampling=sampling, flags=ONLY_OUTPUT)
    answer = infer(channel, request)
    assert texts_of(answer) == [done.text for done in alone]
    assert numbers_of(answer, "num_output_tokens") == lengths
    assert [list(output.shape) for output in answer.outputs] == [shape] * 4
    assert eventually(lambda: tiny_server.metrics()[series] == before + 5)


def test_bytes_are_answered_with_bytes(channel: grpc.Channel) -> None:
    plain = asking("small", "hello", "you", parameters=GREEDY, flags=ONLY_OUTPUT)
    in_fields, in_bytes = infer(channel, plain), infer(channel, as_raw(plain))
    assert not in_fields.raw_output_contents
    assert not any(output.HasField("contents") for output in in_bytes.outputs)
    assert texts_of(in_bytes) == texts_of(in_fields)
    names = [output.name for output in in_bytes.outputs]
    raw = in_bytes.raw_output_contents[names.index("num_output_tokens")]
    assert raw == b"\x0c\0\0\0" * 2


@pytest.mark.parametrize(
    ("outputs", "flags", "expected"),
    [
        (["num_output_tokens", "text_output"], {}, ["num_output_tokens", "text_output"]),
        (
            [], {"return_finish_reason": False, "return_num_input_tokens": True},
            ["text_output", "num_input_tokens", "num_output_tokens"],
        ),
        (["text_output"], {"return_finish_reason": True}, ["text_output"]),
    ],
)  # fmt: skip
def test_outputs_are_those_that_are_wanted(
    channel: grpc.Channel, outputs: list[str], flags: dict[str, bool], expected: list[str]
) -> None:
    request = asking("small", "hello", parameters=GREEDY, outputs=outputs, flags=flags)
    assert [output.name for output in infer(channel, request).outputs] == expected


SAMPLING: dict[str, Any] = {
    "temperature": 1.5, "top_p": 0.9, "top_k": 40, "min_p": 0.01, "max_tokens": 20,
    "min_tokens": 4, "seed": 7, "stop": ["e", "zz"], "stop_token_ids": [70],
    "presence_penalty": 0.5, "frequency_penalty": 0.25, "repetition_penalty": 1.25,
    "ignore_eos": True, "include_stop_str_in_output": True, "skip_special_tokens": False,
}  # fmt: skip


def test_all_of_sampling_is_as_in_our_own_requests(channel: grpc.Channel, client: Client) -> None:
    ours: Any = {
        "include_stop" if name == "include_stop_str_in_output" else name: value
        for name, value in SAMPLING.items()
    }
    expected = client.generate("hello", adapter="wide", **ours).text
    other = client.generate("hello", adapter="wide", **ours | {"seed": 8}).text
    assert expected != other
    as_text = {  # as clients write it that have no other way
        name: value if isinstance(value, list | bool) else str(value)
        for name, value in SAMPLING.items()
    }
    lists = {name: value for name, value in SAMPLING.items() if isinstance(value, list)}
    numbers = {name: value for name, value in SAMPLING.items() if name not in lists}
    for parameters, sampling in (({}, SAMPLING), ({}, as_text), (numbers, lists)):
        request = asking(
            "wide", "hello", parameters=parameters, sampling=[json.dumps(sampling)],
            flags=ONLY_OUTPUT,
        )  # fmt: skip
        assert texts_of(infer(channel, request)) == [expected]


def test_what_is_null_is_as_if_absent(channel: grpc.Channel) -> None:
    sampling = json.dumps(GREEDY | {"seed": None, "stop": None})
    answer = infer(channel, asking("small", "hello", sampling=[sampling]))
    assert numbers_of(answer, "num_output_tokens") == [12]


def test_a_priority_changes_no_answer(channel: grpc.Channel) -> None:
    expected = texts_of(infer(channel, asking("small", "hello", parameters=GREEDY)))
    for priority in (-(1 << 31), "7"):
        request = asking("small", "hello", parameters=GREEDY | {"priority": priority})
        assert texts_of(infer(channel, request)) == expected


def test_fields_of_vllm_are_as_in_our_own_requests(channel: grpc.Channel, client: Client) -> None:
    ours: Any = {"truncate_prompt_tokens": 4, "cache_salt": "s"}
    bad: Any = {"bad_words": list("aeiou\u00e9\n")}
    expected = client.generate("hello", adapter="wide", **GREEDY, **bad, **ours).text
    request = asking(
        "wide", "hello", parameters=GREEDY | ours, sampling=[json.dumps(bad)], flags=ONLY_OUTPUT
    )
    answer = infer(channel, request)
    assert texts_of(answer) == [expected]
    assert numbers_of(answer, "num_input_tokens") == [4]


def test_what_is_special_to_the_tokenizer_is_so_where_that_is_wanted(channel: grpc.Channel) -> None:
    def num_input(**parameters: Any) -> int:
        request = asking("small", "hello</s>", parameters=GREEDY | parameters)
        return numbers_of(infer(channel, request), "num_input_tokens")[0]

    assert num_input() == len("<hello</s>")  # the prefix is one token
    assert num_input(add_special_tokens=False) == len("hello</s>")
    assert num_input(parse_special_tokens="true") == len("<hello>")


# Streams


class Requests:
    """What a client sends on a stream, when it does."""

    def __init__(self, *requests: pb.ModelInferRequest) -> None:
        self._waiting: queue.Queue[pb.ModelInferRequest | None] = queue.Queue()
        for request in requests:
            self.send(request)

    def send(self, request: pb.ModelInferRequest | None) -> None:
        """Send one more, or with None say that there are no more."""
        self._waiting.put(request)

    def __iter__(self) -> Iterator[pb.ModelInferRequest]:
        return iter(self._waiting.get, None)


def final(response: pb.ModelStreamInferResponse) -> bool:
    return response.infer_response.parameters["triton_final_response"].bool_param


def test_a_stream_is_the_answer_in_pieces(channel: grpc.Channel, client: Client) -> None:
    # Nobody asked that before: what was written already may come in one piece.
    request = asking("wide", "a stream", id="a", parameters=GREEDY, flags=STREAM)
    set_parameter(request.parameters["triton_enable_empty_final_response"], True)
    found = list(call(channel, "ModelStreamInfer", iter([request])))
    whole = client.generate("a stream", adapter="wide", **GREEDY)
    assert len(found) > 1
    answers = [each.infer_response for each in found]
    assert not any(each.error_message for each in found)
    assert "".join(text for answer in answers for text in texts_of(answer)) == whole.text
    assert sum(numbers_of(answer, "num_output_tokens")[0] for answer in answers) == 12
    assert [final(each) for each in found] == [False] * (len(found) - 1) + [True]
    reasons = [texts_of(answer, "finish_reason")[0] for answer in answers]
    assert reasons == ["None"] * (len(found) - 1) + ["length"]
    assert numbers_of(answers[-1], "num_input_tokens") == [len("a stream") + 1]
    assert {(each.model_name, each.model_version, each.id) for each in answers} == {
        ("wide", "1", "a")
    }


def test_what_is_no_stream_is_answered_once_on_one(channel: grpc.Channel, client: Client) -> None:
    made = [client.generate(text, adapter="rs", **GREEDY).text for text in ("hello", "you")]
    request = asking("rs", "hello", "you", parameters=GREEDY)
    (found,) = call(channel, "ModelStreamInfer", iter([as_raw(request)]))
    assert texts_of(found.infer_response) == ["hello" + made[0], "you" + made[1]]
    assert final(found)


def test_requests_of_a_stream_are_answered_beside_each_other(
    tiny_server: RunningServer, channel: grpc.Channel
) -> None:
    long = {"temperature": 0.0, "max_tokens": 200, "ignore_eos": True}
    names = [BASE, *ADAPTERS]
    requests = [asking(name, "hello", id=name, parameters=long, flags=STREAM) for name in names]

    def all_begin_before_one_ends() -> bool:
        before = tiny_server.metrics()
        order = [each.infer_response.id
                 for each in call(channel, "ModelStreamInfer", iter(requests))]  # fmt: skip
        after = tiny_server.metrics()
        assert set(order) == set(names)
        steps = "loramux_step_seconds_count"
        assert after[steps] - before[steps] < 200 * len(names)
        first_end = min(len(order) - 1 - order[::-1].index(name) for name in names)
        return set(order[:first_end]) == set(names)

    # Where the frontend had no processor for long, what came meanwhile is one answer.
    assert any(all_begin_before_one_ends() for _ in range(6))


def test_a_request_that_fails_leaves_the_stream_as_it_was(channel: grpc.Channel) -> None:
    requests = Requests(asking("nobody", "hello", id="first"))
    answers = call(channel, "ModelStreamInfer", iter(requests))
    failed = next(answers)
    assert failed.error_message == "NOT_FOUND: adapter 'nobody' is not registered"
    assert (failed.infer_response.id, final(failed)) == ("first", True)
    requests.send(asking("small", "hello", id="second", parameters={"max_tokens": 0}))
    assert "INVALID_ARGUMENT: parameters.max_tokens is 0" in next(answers).error_message
    requests.send(asking("small", "hello", id="third", parameters=GREEDY))
    well = next(answers)
    assert (well.error_message, well.infer_response.id) == ("", "third")
    requests.send(None)
    assert list(answers) == []


def test_an_error_ends_the_stream_where_that_is_wanted(channel: grpc.Channel) -> None:
    answers = call(
        channel, "ModelStreamInfer", iter([asking("nobody", "hello")]),
        metadata=(("triton_grpc_error", "true"),),
    )  # fmt: skip
    with pytest.raises(grpc.RpcError) as caught:
        next(answers)
    assert refusal(caught.value).code is NOT_FOUND


def test_the_log_of_a_stream_that_went_on_reports_what_was_refused(observed: Observed) -> None:
    metadata = (*shown(observed.keys[Role.USER].text), (REQUEST_ID_KEY, "one-refused"))
    requests = [asking("public/nobody", "hello"), asking("public/small", "", id="second")]
    with grpc.insecure_channel(observed.server.target) as channel:
        stream = Requests(requests[0])
        answers = call(channel, "ModelStreamInfer", iter(stream), metadata=metadata)
        assert next(answers).error_message.startswith("NOT_FOUND")
        stream.send(requests[1])
        assert next(answers).error_message.startswith("INVALID_ARGUMENT")
        stream.send(None)
        assert list(answers) == []
    assert eventually(lambda: any(line["request_id"] == "one-refused" for line in observed.calls()))
    (line,) = [line for line in observed.calls() if line["request_id"] == "one-refused"]
    assert (line["status"], line["reason"]) == ("OK", "INVALID_FIELD")


def test_bytes_that_are_no_request_end_the_stream(channel: grpc.Channel) -> None:
    stream: Any = channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")
    with pytest.raises(grpc.RpcError) as caught:
        list(stream(iter([b"\x0a\x7fabc"]), timeout=60))
    refused = refusal(caught.value)
    assert (refused.code, refused.reason) == (INVALID, "MALFORMED_REQUEST")
    assert "inference.ModelInferRequest" in refused.message


LONG = {"max_tokens": 240, "ignore_eos": True}


@pytest.mark.parametrize("how", ["ModelInfer", "ModelStreamInfer"])
def test_who_cancels_takes_all_texts_along(
    tiny_server: RunningServer, channel: grpc.Channel, how: str
) -> None:
    def cancelled() -> float:
        series = 'loramux_requests_total{adapter="wide",outcome="cancelled"}'
        return tiny_server.metrics().get(series, 0.0)

    def num_running() -> float:
        return tiny_server.metrics()["loramux_requests_running"]

    before = cancelled()
    if how == "ModelInfer":
        behaviour: Any = channel.unary_unary(
            f"/inference.GRPCInferenceService/{how}",
            request_serializer=pb.ModelInferRequest.SerializeToString,
        )
        under_way = behaviour.future(asking("wide", *["hello"] * 64, parameters=LONG), timeout=60)
        assert eventually(lambda: num_running() > 0)
    else:
        requests = [asking("wide", "hello", parameters=LONG, flags=STREAM) for _ in range(64)]
        under_way = call(channel, how, iter(requests))
        next(under_way)
    under_way.cancel()
    assert eventually(lambda: num_running() == 0)
    # Some may have ended well before.
    assert eventually(lambda: cancelled() > before)


def test_log_and_traces_show_a_call_and_each_of_its_texts(observed: Observed) -> None:
    trace = "5" * 32
    metadata = (
        *shown(observed.keys[Role.USER].text),
        (REQUEST_ID_KEY, "two-texts"),
        ("traceparent", f"00-{trace}-{'7' * 16}-01"),
    )
    request = asking("public/small", "hello", "you", parameters=GREEDY)
    with grpc.insecure_channel(observed.server.target) as channel:
        call(channel, "ModelInfer", request, metadata=metadata)
    assert eventually(lambda: any(line["request_id"] == "two-texts" for line in observed.calls()))
    (line,) = [line for line in observed.calls() if line["request_id"] == "two-texts"]
    assert line["method"] == "inference.GRPCInferenceService.ModelInfer"
    assert (line["tenant"], line["adapter"], line["parts"]) == ("acme", "small", 2)
    assert (line["prompt_tokens"], line["completion_tokens"]) == (len("hello" + "you") + 2, 24)
    spans = observed.collector.of(trace)
    (whole,) = [span for span in spans if "rpc.method" in span.attributes]
    texts = [span for span in spans if span.name == "text_completion tiny"]
    assert [span.parent for span in texts] == [whole.id] * 2


# What is refused


def changed(change: Callable[[pb.ModelInferRequest], object]) -> pb.ModelInferRequest:
    """Return a request that would be right without the change."""
    request = asking("small", "hello")
    change(request)
    return request


def shaped(shape: list[int]) -> pb.ModelInferRequest:
    request = asking("small", "hello")
    request.inputs[0].shape[:] = shape
    return request


def raw(*contents: bytes, num_inputs: int = 1) -> pb.ModelInferRequest:
    """Return a request whose one or two inputs have these bytes."""
    request = as_raw(asking("small", "hello"))
    if num_inputs == 2:
        request.inputs.add(name="stream", datatype="BOOL", shape=[1])
    request.raw_input_contents[:] = contents
    return request


HELLO = packed([b"hello"])
BAD: dict[str, tuple[pb.ModelInferRequest, str, str]] = {
    "no-inputs": (pb.ModelInferRequest(model_name="small"), "inputs", "no 'text_input'"),
    "unknown-input": (
        changed(lambda r: r.inputs.add(name="image", datatype="BYTES", shape=[1])),
        "inputs[1].name", "'image'",
    ),
    "input-twice": (
        changed(lambda r: r.inputs.append(r.inputs[0])), "inputs[1].name", "each input once"
    ),
    "datatype": (
        changed(lambda r: setattr(r.inputs[0], "datatype", "FP32")),
        "text_input.datatype", "'FP32'; expected 'BYTES'",
    ),
    **{
        f"shape-{shape}": (shaped(shape), "text_input.shape", str(shape))
        for shape in ([], [0], [-1], [65], [1, 2], [1, 1, 1], [2**62, 1])
    },
    "shape-of-flag": (
        changed(lambda r: r.inputs.add(name="stream", datatype="BOOL", shape=[2])),
        "stream.shape", "[2]; expected [1] or [1, 1]",
    ),
    "too-few-elements": (asking("small", "a", shape=[2]), "text_input.contents", "1 elements"),
    "too-many-elements": (asking("small", "a", "b", shape=[1]), "text_input.contents", "2 element"),
    "empty-text": (asking("small", "a", ""), "text_input[1]", "b''"),
    "not-utf-8": (asking("small", b"\xff"), "text_input[0]", r"b'\xff'; expected non-empty UTF-8"),
    "input-parameters": (
        changed(lambda r: set_parameter(r.inputs[0].parameters["shared_memory_region"], "a")),
        "text_input.parameters", "'shared_memory_region'",
    ),
    "unknown-output": (asking("small", "a", outputs=["logprobs"]), "outputs[0].name", "'logprobs'"),
    "output-twice": (
        asking("small", "a", outputs=["text_output"] * 2), "outputs[1].name", "each output once"
    ),
    "output-parameters": (
        changed(lambda r: set_parameter(
            r.outputs.add(name="text_output").parameters["classification"], 3)),
        "outputs[0].parameters", "'classification'",
    ),
    "raw-too-few": (raw(HELLO, num_inputs=2), "raw_input_contents", "each of 2 inputs"),
    "raw-too-many": (raw(HELLO, b"\0"), "raw_input_contents", "has 2 entries; expected one"),
    "raw-and-contents": (
        changed(lambda r: r.raw_input_contents.append(HELLO)), "text_input.contents", "none with"
    ),
    "raw-cut-off": (raw(HELLO[:-1]), "raw_input_contents", "has 8 bytes"),
    "raw-no-length": (raw(b"\1\0"), "raw_input_contents", "ends in element 0"),
    "raw-too-long": (raw(HELLO + b"x"), "raw_input_contents", "expected 9"),
    "raw-no-bool": (raw(HELLO, b"\2", num_inputs=2), "raw_input_contents", "bytes of 0 or 1"),
    "id": (asking("small", "a", id="i" * 129), "id", "iiii"),
    "unknown-parameter": (
        asking("small", "a", parameters={"bogus": 1}), "parameters", "'parameters.bogus'"
    ),
    "huge-name": (asking("small", "a", parameters={"b" * 100_000: 1}), "parameters", "bbbb"),
    "sequence": (asking("small", "a", parameters={"sequence_id": 1}), "parameters", "sequence_id"),
    "lora-name": (
        asking("small", "a", sampling=['{"lora_name": "wide"}']), "sampling_parameters",
        "name the adapter in model_name",
    ),
    "n": (asking("small", "a", parameters={"n": 2}), "parameters", "one completion"),
    "no-value": (
        changed(lambda r: r.parameters["seed"].SetInParent()), "parameters.seed", "None"
    ),
    "type": (
        asking("small", "a", parameters={"temperature": "warm"}), "parameters.temperature",
        "'warm'; expected a number",
    ),
    "no-integer": (
        asking("small", "a", parameters={"max_tokens": 1.5}), "parameters.max_tokens", "1.5"
    ),
    "64-bits": (
        asking("small", "a", parameters={"max_tokens": 1 << 40}), "parameters.max_tokens",
        "a 32-bit integer",
    ),
    "range": (
        asking("small", "a", sampling=['{"top_p": 2}']), "sampling_parameters.top_p",
        "is 2.0; expected a number",
    ),
    "nan": (
        asking("small", "a", parameters={"temperature": float("nan")}), "parameters.temperature",
        "nan",
    ),
    "range-of-one": (
        asking("small", "a", "b", sampling=["{}", '{"max_tokens": 0}']),
        "sampling_parameters.max_tokens", "is 0",
    ),
    "context": (
        asking("small", "abc", parameters={"max_tokens": 253}), "parameters.max_tokens",
        "leaves room for 252",
    ),
    "long-text": (asking("small", "a", "b" * 300), "text_input[1]", "text_input[1] has 301 tokens"),
    "no-json": (asking("small", "a", sampling=["{"]), "sampling_parameters", "a JSON object"),
    "json-list": (asking("small", "a", sampling=["[]"]), "sampling_parameters", "b'[]'"),
    "json-deep": (asking("small", "a", sampling=["[" * 9999]), "sampling_parameters", "[[["),
    "json-bytes": (asking("small", "a", sampling=[b"\xff"]), "sampling_parameters", r"b'\xff'"),
    "sampling-shape": (
        asking("small", "a", "b", "c", sampling=["{}", "{}"]), "sampling_parameters.shape",
        "[2]; expected [1] or [3]",
    ),
    "twice": (
        asking("small", "a", parameters={"seed": 1}, sampling=['{"seed": 1}']),
        "sampling_parameters", "'seed'",
    ),
    "routing-key": (
        asking("small", "a", parameters={"routing_key": 1}), "parameters.routing_key", "1"
    ),
    "long-routing-key": (
        asking("small", "a", parameters={"routing_key": "k" * 257}), "parameters.routing_key",
        "at most 256 characters",
    ),
    "priority": (
        asking("small", "a", parameters={"priority": 1 << 31}), "parameters.priority",
        "is 2147483648; expected a 32-bit integer",
    ),
    "stops": (
        asking("small", "a", sampling=[json.dumps({"stop": ["s"] * 9})]),
        "sampling_parameters.stop", "a list of at most 8",
    ),
    "long-stop": (
        asking("small", "a", parameters={"stop": "s" * 257}), "parameters.stop",
        "a string of 1 to 256 bytes",
    ),
    "long-stop-in-bytes": (
        asking("small", "a", sampling=[json.dumps({"stop": ["ü" * 129]})]),
        "sampling_parameters.stop", "strings of 1 to 256 bytes",
    ),
    "empty-stop": (asking("small", "a", parameters={"stop": ""}), "parameters.stop", "''"),
    "stop-tokens": (
        asking("small", "a", "b", sampling=[json.dumps({"stop_token_ids": [1] * 500_000})]),
        "sampling_parameters.stop_token_ids", "a list of at most 128 token ids",
    ),
    "stream": (asking("small", "a", flags=STREAM), "stream", "ModelStreamInfer"),
    "version": (asking("small", "a", version="01"), "model_version", "'01'"),
    "version-digest": (
        asking("small", "a", version="1@sha256:" + "0" * 64), "model_version", "a number from 1"
    ),
    "version-slash": (asking("small", "a", version="a/b"), "model_version", "'a/b'"),
}  # fmt: skip


@pytest.mark.parametrize(("request_", "field", "says"), BAD.values(), ids=BAD.keys())
def test_a_bad_field_is_refused_by_name(
    channel: grpc.Channel, request_: pb.ModelInferRequest, field: str, says: str
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        infer(channel, request_)
    refused = refusal(caught.value)
    assert (refused.code, refused.field) == (INVALID, field)
    assert field.partition(".")[0] in refused.message
    assert says in refused.message
    assert len(refused.message) < 400


ON_A_STREAM = {
    "two": (asking("small", "a", "b", flags=STREAM), "text_input.shape is [2]"),
    "with-input": (
        asking("small", "a", flags={**STREAM, "exclude_input_in_output": False}),
        "exclude_input_in_output is False",
    ),
}


@pytest.mark.parametrize(("request_", "says"), ON_A_STREAM.values(), ids=ON_A_STREAM.keys())
def test_what_a_stream_cannot_be_is_refused(
    channel: grpc.Channel, request_: pb.ModelInferRequest, says: str
) -> None:
    (found,) = call(channel, "ModelStreamInfer", iter([request_]))
    assert found.error_message.startswith(f"INVALID_ARGUMENT: {says}")


@pytest.mark.parametrize(
    ("name", "version", "field", "says"),
    [
        ("nobody", "", "model_name", "'nobody' is not registered"),
        ("nobody", "3", "model_name", "'nobody:3' is not registered"),
        ("", "", "model_name", f"the base model is called '{BASE}'"),
        ("Llama-3", "", "model_name", f"the base model is called '{BASE}'"),
        ("small:1", "", "model_name", "put the version into"),
        ("small", "2", "model_name", "no version 2; the newest is 1"),
        ("small", "stable", "model_name", "no alias 'stable'"),
        (BASE, "1", "model_version", "has no versions"),
        ("other/small", "", "model_name", "'other/small' is not registered"),
    ],
)
def test_an_unknown_model_is_not_found_and_never_the_base(
    channel: grpc.Channel, name: str, version: str, field: str, says: str
) -> None:
    ours = {"model_name": "name", "model_version": "version"}
    for method, request, expected in (
        ("ModelInfer", asking(name, "hello", version=version), field),
        ("ModelMetadata", pb.ModelMetadataRequest(name=name, version=version), ours[field]),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            call(channel, method, request)
        refused = refusal(caught.value)
        assert (refused.code, refused.reason) == (NOT_FOUND, "ADAPTER_NOT_FOUND")
        assert refused.field == expected
        assert says in refused.message


def test_what_is_refused_is_counted(tiny_server: RunningServer, channel: grpc.Channel) -> None:
    def refused(outcome: str) -> float:
        series = f'loramux_requests_total{{adapter="none",outcome="{outcome}"}}'
        return tiny_server.metrics().get(series, 0.0)

    before = refused("invalid_argument"), refused("not_found")
    for request in (asking("small", ""), asking("nobody", "a")):
        with pytest.raises(grpc.RpcError):
            infer(channel, request)
    assert (refused("invalid_argument"), refused("not_found")) == (before[0] + 1, before[1] + 1)


def test_more_texts_than_a_quota_ever_grants_are_refused_for_good(
    channel: grpc.Channel, tiny_server: RunningServer
) -> None:
    catalog = Catalog.in_folder(tiny_server.log.parent / "store")
    request = asking(BASE, "a", "b", "c", parameters=GREEDY)

    def refused() -> Refusal | None:
        try:
            infer(channel, request)
        except grpc.RpcError as error:
            return refusal(error)
        return None

    try:
        catalog.policies.set(Policy(tenant="public", concurrent_requests=2))
        assert eventually(lambda: refused() is not None)
        found = refused()
        assert found
        assert (found.code, found.reason) == (
            grpc.StatusCode.FAILED_PRECONDITION, "QUOTA_EXCEEDED",
        )  # fmt: skip
        assert "3 prompts count as 3 requests" in found.message
        assert not found.retry_delay
        infer(channel, asking(BASE, "a", "b", parameters=GREEDY))
    finally:
        catalog.policies.remove("public")
        catalog.close()
    assert eventually(lambda: refused() is None)
