"""Values on their way to and from the wire."""

import datetime
import json
import math
import time
from typing import Any

import grpc
import pytest

from loramux import _adapter_wire, _classification_wire, _wire
from loramux._answer_types import Answers
from loramux.cli.app import run
from loramux.cli.classify import paired
from loramux.cli.sampling import adapter_options
from loramux.errors import InvalidArgumentError, NotFoundError
from loramux.types import FinishReason
from loramux.v1 import adapters_pb2, classification_pb2, errors_pb2, generation_pb2


def request(prompt: Any = "hello", adapter: str = "", **sampling: Any) -> Any:
    return _wire.generate_request(prompt, None, adapter, **sampling)


def test_sampling_options_arrive() -> None:
    sent = request(max_tokens=3, stop="end", logit_bias={4: 1.5}, temperature=0.0).sampling
    assert (sent.max_tokens, list(sent.stop), dict(sent.logit_bias)) == (3, ["end"], {4: 1.5})
    assert sent.HasField("temperature")
    assert not sent.HasField("top_p")


def test_a_priority_has_32_bits() -> None:
    lowest = -(1 << 31)
    assert request(priority=lowest).priority == lowest
    with pytest.raises(InvalidArgumentError, match="priority: ") as caught:
        request(priority=1 << 31)
    assert caught.value.field == "priority"


def test_a_prediction_is_text_or_token_ids() -> None:
    sent = request(prediction="hello", max_tokens=3)
    assert (sent.prediction, list(sent.prediction_token_ids)) == ("hello", [])
    sent = request(prediction=(5, 6))
    assert (sent.prediction, list(sent.prediction_token_ids)) == ("", [5, 6])
    assert request(prediction=None) == request() == request(prediction="")


def test_a_form_arrives_as_what_it_is() -> None:
    def form(**options: Any) -> generation_pb2.StructuredOutput:
        sent: generation_pb2.SamplingParams = request(**options).sampling
        return sent.structured_output

    assert json.loads(form(json_schema={"const": "é"}).json_schema) == {"const": "é"}
    assert form(json_schema='{"const": 1}').json_schema == '{"const": 1}'
    assert form(json_object=True).json_object
    assert form(regex="a+").regex == "a+"
    assert list(form(choice=("a", "b")).choice.texts) == ["a", "b"]
    assert form(grammar='start: "a"').grammar == 'start: "a"'
    assert not request(temperature=0.0).sampling.HasField("structured_output")


def test_a_text_has_one_form() -> None:
    with pytest.raises(InvalidArgumentError, match="json_object and regex are both set") as caught:
        request(regex="a", json_object=True)
    assert caught.value.field == "sampling.structured_output"


def classified(*texts: Any) -> list[classification_pb2.ClassifyInput]:
    sent = _classification_wire.classify_request(texts, "nli", None, False, "", "", 0, False, True)
    return list(sent.inputs)


def test_a_text_that_is_classified_is_text_or_token_ids_or_two_texts() -> None:
    text, ids, pair, as_list = classified("a", [5, 6], ("a", ""), ["a", "b"])
    assert (text.text, text.HasField("text_pair")) == ("a", False)
    assert (list(ids.token_ids), ids.HasField("text")) == ([5, 6], False)
    assert (pair.text, pair.HasField("text_pair"), pair.text_pair) == ("a", True, "")
    assert (as_list.text, as_list.text_pair) == ("a", "b")


@pytest.mark.parametrize("given", [("a", "b", "c"), ("a",), ("a", 5), (5, "a")])
def test_what_is_neither_one_text_nor_two_is_refused(given: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="a pair of texts") as caught:
        classified("a", given)
    assert caught.value.field == "inputs[1]"


def test_texts_of_the_command_line_go_with_their_pairs() -> None:
    assert paired(["a", "b"], ["c", "d"]) == [("a", "c"), ("b", "d")]
    assert paired(["a", "b"], ["c"]) == [("a", "c"), ("b", "c")]
    assert paired(["a"], ["c", "d"]) == [("a", "c"), ("a", "d")]
    with pytest.raises(InvalidArgumentError, match="3 texts and 2 of --pair"):
        paired(["a", "b", "c"], ["d", "e"])


def test_a_form_of_a_newer_server_is_none() -> None:
    newer = generation_pb2.SamplingParams.FromString(b"\x9a\x01\x04\x3a\x02ab")
    assert newer.HasField("structured_output")
    answer = generation_pb2.GenerateResponse(sampling=newer)
    assert _wire.generation(answer).sampling == {}


def test_of_the_first_token_of_a_prompt_nothing_is_known() -> None:
    def token(number: int, **more: float) -> generation_pb2.TokenLogprob:
        return generation_pb2.TokenLogprob(token_id=number, **more)  # type: ignore[arg-type]

    positions = [
        generation_pb2.PositionLogprobs(chosen=token(5)),
        generation_pb2.PositionLogprobs(
            chosen=token(6, logprob=0.0), top=[token(6, logprob=0.0)], rank=1
        ),
    ]
    answer = _wire.generation(generation_pb2.GenerateResponse(prompt_logprobs=positions))
    piece = _wire.chunk(generation_pb2.StreamGenerateResponse(prompt_logprobs=positions))
    assert answer.prompt_logprobs == piece.prompt_logprobs
    first, second = answer.prompt_logprobs
    assert (first.chosen.token_id, first.top, first.rank) == (5, (), None)
    assert math.isnan(first.chosen.logprob)
    assert (second.chosen.token_id, second.chosen.logprob, second.rank) == (6, 0.0, 1)
    # Servers that do not tell prompts leave a logarithm of nought out.
    message = generation_pb2.Completion(logprobs=positions[:1])
    found = _wire.generation(generation_pb2.GenerateResponse(completions=[message])).logprobs
    assert [position.chosen.logprob for position in found] == [0.0]


def test_a_mix_arrives_in_order() -> None:
    for adapters in ({"b": 0.5, "a": -1.0}, [("b", 0.5), ("a", -1.0)]):
        sent = request(adapters=adapters, combination="linear")
        assert [(each.adapter, each.weight) for each in sent.adapters] == [("b", 0.5), ("a", -1.0)]
        assert sent.combination == generation_pb2.COMBINATION_LINEAR
    assert not request(adapter="a").HasField("scale")
    assert request(adapter="a", scale=0.0).HasField("scale")


@pytest.mark.parametrize(
    ("given", "adapter", "mix"),
    [
        ([], None, []),
        (["a:3"], "a:3", []),
        (["a:stable", "b"], None, [("a:stable", 1.0), ("b", 1.0)]),
        (["a:0.7", "b:-.3"], None, [("a", 0.7), ("b", -0.3)]),
        (["a:3=2", "b:stable:0.5"], None, [("a:3", 2.0), ("b:stable", 0.5)]),
    ],
)
def test_the_command_line_distinguishes_weights_from_tags(
    given: list[str], adapter: str | None, mix: list[tuple[str, float]]
) -> None:
    options = adapter_options(given, 0.5, "linear")
    assert (options["adapter"], options["adapters"]) == (adapter, mix)
    assert (options["scale"], options["combination"]) == (0.5, "linear")


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("sampling.max_tokens", {"max_tokens": 1 << 40}),
        ("sampling.seed", {"seed": 1 << 64}),
        ("sampling.stop", {"stop": ["fine", "\udc80"]}),
        ("sampling.nothing", {"nothing": 1}),
        ("prompt", {"prompt": "\udc80"}),
        ("prompt_token_ids", {"prompt": [1, 1 << 64]}),
        ("prediction", {"prediction": "\udc80"}),
        ("prediction_token_ids", {"prediction": [1, 1 << 64]}),
        ("adapter", {"adapter": "\udc80"}),
        ("adapters", {"adapters": {"\udc80": 1.0}}),
        ("combination", {"combination": "svd"}),
    ],
)
def test_a_value_that_does_not_fit_is_named(field: str, values: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError, match=f"^{field}: ") as caught:
        request(**values)
    assert (caught.value.reason, caught.value.field) == ("INVALID_FIELD", field)


def test_ways_to_mix_are_named() -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        request(combination="svd")
    assert str(caught.value) == "combination: expected cat or linear, got 'svd'"
    for name in ("unspecified", ""):
        with pytest.raises(InvalidArgumentError):
            request(combination=name)


def test_the_command_line_says_it_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["loramux", "generate", "hello", "--max-tokens", str(1 << 40)]
    monkeypatch.setattr("sys.argv", arguments)
    assert run() == 1
    said = capsys.readouterr().err
    assert said.startswith("loramux: --max-tokens: ")
    assert said.count("\n") == 1


@pytest.mark.skipif(not hasattr(time, "tzset"), reason="no time zones to set")
def test_a_moment_is_the_same_in_every_time_zone(monkeypatch: pytest.MonkeyPatch) -> None:
    moment = datetime.datetime(2026, 7, 1, 12, tzinfo=datetime.UTC)
    message = adapters_pb2.Adapter()
    message.created_at.FromDatetime(moment)
    try:
        monkeypatch.setenv("TZ", "Asia/Tokyo")
        time.tzset()
        assert _adapter_wire.adapter(message).created_at == moment
    finally:
        monkeypatch.undo()
        time.tzset()


def test_a_finish_reason_of_a_newer_server_is_unknown() -> None:
    completion = generation_pb2.Completion(finish_reason=99)  # type: ignore[arg-type]
    answer = generation_pb2.GenerateResponse(completions=[completion])
    assert _wire.generation(answer).finish_reason is FinishReason.UNKNOWN
    piece = generation_pb2.StreamGenerateResponse(delta=completion)
    assert _wire.chunk(piece).finish_reason is FinishReason.UNKNOWN
    assert _wire.chunk(generation_pb2.StreamGenerateResponse()).finish_reason is None


def test_a_reason_of_a_newer_server_is_its_number() -> None:
    for number, reason in (
        (errors_pb2.ERROR_REASON_ADAPTER_NOT_FOUND, "ADAPTER_NOT_FOUND"),
        (99, "99"),
    ):
        detail = errors_pb2.ErrorDetail(reason=number, field="adapter")  # type: ignore[arg-type]
        error = grpc.aio.AioRpcError(
            grpc.StatusCode.NOT_FOUND,
            grpc.aio.Metadata(),
            grpc.aio.Metadata((_wire.ERROR_KEY, detail.SerializeToString())),
            "no such thing",
        )
        raised = _wire.error_of(error)
        assert isinstance(raised, NotFoundError)
        assert (raised.reason, raised.field) == (reason, "adapter")


def test_where_there_are_no_answers_the_best_is_empty() -> None:
    found = Answers((), 1)
    assert (found.text, found.score) == ("", 0.0)
