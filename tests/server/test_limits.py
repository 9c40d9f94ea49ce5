"""What a checked request becomes, and limits that depend on the base model.

What is refused, and how, is in tests/e2e/test_bad_requests.py.
"""

import dataclasses
import itertools
from contextlib import nullcontext
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loramux.errors import InvalidArgumentError
from loramux.v1.generation_pb2 import (
    ChatMessage,
    Choice,
    GenerateRequest,
    SamplingParams,
    StructuredOutput,
)
from loramux_server.config import ServerConfig
from loramux_server.field_errors import invalid
from loramux_server.forms.form import Form, FormKind
from loramux_server.images.messages import Array, Image, PlacedImage
from loramux_server.services.generation.completion_limits import CompletionLimits
from loramux_server.services.generation.conversation import parse_conversation
from loramux_server.services.generation.defaults import with_defaults
from loramux_server.services.generation.forms import form_of
from loramux_server.services.generation.options import options_of
from loramux_server.services.generation.prediction import check_prediction
from loramux_server.services.generation.prepared import Prepared
from loramux_server.services.generation.sampling import samplings, text_options
from loramux_server.services.limits import check_fields
from loramux_server.services.resolved_adapters import ResolvedAdapters
from loramux_server.wire.model_info import ModelInfo
from loramux_server.wire.sampling import Sampling
from tests.support.engine_sizes import sizes_of

MODEL = ModelInfo(
    name="tiny", architecture="LlamaForCausalLM", fingerprint="sha256:0", dtype="float32",
    device="cpu", context_length=1000, vocab_size=12, num_parameters=1, eos_token_ids=[2],
    tokenizer_json="{}", layers={}, adapter_rows=8, max_running=8, num_blocks=8,
    sizes=sizes_of(),
)  # fmt: skip
PREPARED = Prepared(
    prompt=[1] * 10, num_source=0, images=[], predicted=[], bad_words=(), tokenizer=None,
    tool_use=None, thinking=None, end_token=None,
)  # fmt: skip
WITHOUT_TOKENIZER = msgspec.structs.replace(MODEL, tokenizer_json=None)


def sampling_of(num_prompt: int = 10, **params: Any) -> Sampling:
    given = SamplingParams(**params)
    (sampling,) = samplings(given, num_prompt, MODEL, form=form_of(given))
    return sampling


def request_of(**params: Any) -> GenerateRequest:
    return GenerateRequest(prompt="hello", sampling=SamplingParams(**params))


def test_what_is_absent_has_its_default() -> None:
    sampling = sampling_of()
    assert sampling == Sampling(max_tokens=256, seed=sampling.seed)
    assert not sampling.is_greedy
    assert not sampling.changes_logits
    assert sampling_of().seed != sampling.seed


def test_virtual_tokens_take_room_of_the_context() -> None:
    (sampling,) = samplings(SamplingParams(), 10, MODEL, num_virtual=980)
    assert sampling.max_tokens == 10
    with pytest.raises(InvalidArgumentError, match="10 tokens and 990 virtual tokens of the adap"):
        samplings(SamplingParams(), 10, MODEL, num_virtual=990)


def test_what_is_set_is_kept() -> None:
    params: dict[str, Any] = {
        "max_tokens": 7, "min_tokens": 3, "temperature": 0.5, "top_k": 5, "top_p": 0.25,
        "min_p": 0.125, "repetition_penalty": 1.5, "presence_penalty": -1.0,
        "frequency_penalty": 0.5, "logit_bias": {3: -2.0}, "seed": -4, "ignore_eos": True,
    }  # fmt: skip
    assert sampling_of(**params, stop_token_ids=[4, 4], logprobs=0) == Sampling(
        **params, stop_token_ids=frozenset({4}), num_logprobs=0
    )


FORMS = [
    (StructuredOutput(json_schema='{"a": 1}'), Form(FormKind.JSON_SCHEMA, '{"a": 1}')),
    (StructuredOutput(json_object=True), Form(FormKind.JSON_OBJECT)),
    (StructuredOutput(regex="a"), Form(FormKind.REGEX, "a")),
    (StructuredOutput(choice=Choice(texts=["a", "b"])), Form(FormKind.CHOICE, choices=("a", "b"))),
    (StructuredOutput(grammar="start: /a/"), Form(FormKind.GRAMMAR, "start: /a/")),
]


@pytest.mark.parametrize(("wanted", "form"), FORMS)
def test_a_form_is_part_of_how_tokens_are_chosen(wanted: StructuredOutput, form: Form) -> None:
    sampling = sampling_of(structured_output=wanted, temperature=0.0)
    assert sampling.form == form
    assert not sampling.is_plain
    check_fields(request_of(structured_output=wanted), MODEL)


@pytest.mark.parametrize("lack", [{"tokenizer_json": None}, {"eos_token_ids": []}])
def test_a_base_without_text_or_end_has_no_forms(lack: dict[str, Any]) -> None:
    request = GenerateRequest(
        prompt_token_ids=[5],
        sampling=SamplingParams(structured_output=StructuredOutput(regex="a")),
    )
    with pytest.raises(InvalidArgumentError, match="regex is set; expected none: the base model"):
        check_fields(request, msgspec.structs.replace(MODEL, **lack))


def test_a_form_ends_a_text_and_no_default_does() -> None:
    defaults = {"min_tokens": 3, "stop": ["x"], "stop_token_ids": [4], "temperature": 0.5}
    merged = with_defaults(SamplingParams(), defaults, MODEL, None)
    assert (merged.min_tokens, list(merged.stop), list(merged.stop_token_ids)) == (3, ["x"], [4])
    wanted = SamplingParams(structured_output=StructuredOutput(regex="a"), stop=["y"])
    merged = with_defaults(wanted, defaults, MODEL, form_of(wanted), 7)
    assert (merged.min_tokens, list(merged.stop), list(merged.stop_token_ids)) == (0, ["y"], [])
    assert merged.temperature == 0.5


def test_a_text_ends_with_the_token_of_its_adapter_too() -> None:
    defaults = {"stop_token_ids": [4]}
    for params, wanted in (
        (SamplingParams(), [4, 7]),
        (SamplingParams(stop_token_ids=[5]), [5, 7]),
        (SamplingParams(stop_token_ids=[7]), [7]),
        (SamplingParams(ignore_eos=True), [4]),
    ):
        merged = with_defaults(params, defaults, MODEL, None, 7)
        assert list(merged.stop_token_ids) == wanted
    assert list(with_defaults(SamplingParams(), {}, MODEL, None, 7).stop_token_ids) == [7]


def test_a_value_of_zero_is_not_the_same_as_none() -> None:
    assert sampling_of(temperature=0.0).is_greedy
    assert sampling_of(seed=0).seed == 0
    assert sampling_of(logprobs=0).num_logprobs == 0


@pytest.mark.parametrize("top_k", [0, -1])
def test_top_k_can_be_switched_off_in_two_ways(top_k: int) -> None:
    assert sampling_of(top_k=top_k).top_k == 0


@given(num_prompt=st.integers(1, 999))
def test_without_max_tokens_a_completion_never_leaves_the_context(num_prompt: int) -> None:
    assert sampling_of(num_prompt).max_tokens == min(256, 1000 - num_prompt)


@pytest.mark.parametrize(("request_fields", "defaults", "most", "kept"), [
    ({}, {}, 256, 256),
    ({"messages": [ChatMessage()]}, {}, 990, 256),
    ({"messages": [ChatMessage()]}, {"max_tokens": 700}, 700, 700),
    ({"messages": [ChatMessage()], "sampling": SamplingParams(max_tokens=800)}, {}, 800, 800),
    ({"messages": [ChatMessage()], "sampling": SamplingParams(num_beams=2)}, {}, 256, 512),
])  # fmt: skip
def test_an_answer_in_a_conversation_has_what_the_context_leaves(
    request_fields: dict[str, Any], defaults: dict[str, Any], most: int, kept: int
) -> None:
    request = GenerateRequest(**request_fields)
    options = options_of(
        request, PREPARED, model=MODEL, adapters=ResolvedAdapters(), defaults=defaults
    )
    assert options.samplings[0].max_tokens == most
    assert options.num_expected == kept


@given(seed=st.integers(-(2**63), 2**63 - 1), n=st.integers(1, 8))
def test_the_seeds_of_n_completions_follow_each_other_and_fit_64_bits(seed: int, n: int) -> None:
    seeds = [s.seed for s in samplings(SamplingParams(seed=seed, n=n), 10, MODEL)]
    assert seeds[0] == seed
    for before, after in itertools.pairwise(seeds):
        assert after == (before + 1 if before < 2**63 - 1 else -(2**63))


def test_text_options_have_the_defaults_of_the_contract() -> None:
    options = text_options(SamplingParams())
    assert (options.stops, options.include_stop, options.skip_special) == ((), False, True)
    options = text_options(SamplingParams(stop=["a"], include_stop=True, skip_special_tokens=False))
    assert (options.stops, options.include_stop, options.skip_special) == (("a",), True, False)


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (GenerateRequest(prompt="hello"), "prompt"),
        (GenerateRequest(prompt_token_ids=[1], sampling=SamplingParams(stop=["a"])),
         "sampling.stop"),
        (GenerateRequest(prompt_token_ids=[1], prediction="a"), "prediction"),
    ],
    ids=["prompt", "stop", "prediction"],
)  # fmt: skip
def test_a_base_without_a_tokenizer_takes_and_gives_token_ids_only(
    request_: GenerateRequest, field: str
) -> None:
    def check(model: ModelInfo) -> None:
        check_fields(request_, model)
        check_prediction(request_, model)

    check(MODEL)
    with pytest.raises(InvalidArgumentError, match="tokenizer") as caught:
        check(WITHOUT_TOKENIZER)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("context", "most"),
    [(1000, 256 << 10), (64 << 10, 512 << 10), (128 << 10, 1 << 20), (1 << 20, 3 << 20)],
)
def test_a_text_may_be_as_long_as_what_may_fit_the_context(context: int, most: int) -> None:
    model = msgspec.structs.replace(MODEL, context_length=context)
    check_fields(GenerateRequest(prompt="é" * (most // 2)), model)
    with pytest.raises(InvalidArgumentError) as caught:
        check_fields(GenerateRequest(prompt="é" * (most // 2) + "e"), model)
    assert str(caught.value) == f"prompt has {most + 1} bytes; expected at most {most}"


@pytest.mark.parametrize(
    ("context", "most"), [(1000, 256 << 10), (64 << 10, 512 << 10), (1 << 20, 768 << 10)]
)
def test_a_conversation_may_be_as_long_as_well(context: int, most: int) -> None:
    model = msgspec.structs.replace(MODEL, context_length=context)

    def talk(size: int) -> GenerateRequest:
        turn = ChatMessage(role="user")
        turn.content = "x" * (size - turn.ByteSize() - 4)  # its tag, and a length of three bytes
        return GenerateRequest(messages=[turn])

    assert len(parse_conversation(talk(most), model).messages) == 1
    with pytest.raises(InvalidArgumentError, match=f"{most + 1} bytes; expected at most {most} of"):
        parse_conversation(talk(most + 1), model)


@pytest.mark.parametrize(("most", "is_refused"), [(-1, False), (999, False), (1 << 30, True)])
def test_what_remains_of_token_ids_has_to_fit_the_context(most: int, is_refused: bool) -> None:
    request = GenerateRequest(prompt_token_ids=[1] * 9999, truncate_prompt_tokens=most)
    with pytest.raises(InvalidArgumentError) if is_refused else nullcontext() as caught:
        check_fields(request, MODEL)
    if caught:
        assert caught.value.reason == "CONTEXT_LENGTH_EXCEEDED"
        assert str(caught.value).startswith("prompt_token_ids has 9999 tokens; the context of 1000")


def test_token_ids_are_predicted_without_a_tokenizer_too() -> None:
    request = GenerateRequest(prompt_token_ids=[1], prediction_token_ids=[2] * 1000)
    check_prediction(request, WITHOUT_TOKENIZER)
    request.prediction_token_ids.append(2)
    with pytest.raises(
        InvalidArgumentError, match="has 1001 tokens; expected at most 1000"
    ) as caught:
        check_prediction(request, WITHOUT_TOKENIZER)
    assert caught.value.field == "prediction_token_ids"


def test_no_more_logprobs_than_tokens_can_be_asked_for() -> None:
    check_fields(GenerateRequest(prompt="a", sampling=SamplingParams(logprobs=12)), MODEL)
    with pytest.raises(InvalidArgumentError, match="from 0 to 12"):
        check_fields(GenerateRequest(prompt="a", sampling=SamplingParams(logprobs=13)), MODEL)


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"stop": ["x"] * 17}, "stop has 17 strings; expected at most 8"),
        ({"stop_token_ids": [1] * 129}, "stop_token_ids has 129 tokens; expected at most 128"),
        (
            {"logit_bias": dict.fromkeys(range(301), 1.0)},
            "logit_bias has 301 entries; expected at most 300",
        ),
    ],
    ids=["stop", "stop_token_ids", "logit_bias"],
)
def test_a_message_gives_a_count_as_a_count(params: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        check_fields(request_of(**params), MODEL)
    assert str(caught.value) == f"sampling.{said}"


def test_no_more_completions_than_run_and_wait_and_none_of_too_long_a_prompt() -> None:
    def prepared(num_tokens: int, num_bytes: int = 0) -> Prepared:
        array = Array("uint8", [num_bytes], bytes(num_bytes))
        image = PlacedImage(0, 1, Image(b"", {"pixel_values": array}))
        return dataclasses.replace(PREPARED, prompt=[1] * num_tokens, images=[image])

    config = ServerConfig(model="", max_waiting_tokens=9000, max_waiting_bytes=1 << 20)
    limits = CompletionLimits.of(config, MODEL)
    for n in (1, 64):
        limits.check(SamplingParams(n=n))
    for n in (0, 65):
        with pytest.raises(
            InvalidArgumentError, match=f"n is {n}; expected an integer from 1 to 64"
        ):
            limits.check(SamplingParams(n=n))
    few = CompletionLimits.of(msgspec.structs.replace(config, max_waiting=5), MODEL)
    few.check(SamplingParams(n=13))
    with pytest.raises(InvalidArgumentError, match="from 1 to 13"):
        few.check(SamplingParams(n=14))
    limits.check_copies(64, prepared(140))
    limits.check_copies(8, prepared(5000, 1 << 20))
    for large, reported in (
        (prepared(141), "with 141 tokens of its prompt for each completion and at most 9000 per "
         "request, expected at most 63"),
        (prepared(9, 1 << 19), "with 524288 bytes of its images for each completion and at most "
         "1048576 per request, expected at most 8"),
    ):  # fmt: skip
        with pytest.raises(InvalidArgumentError) as caught:
            limits.check_copies(64, large)
        assert (str(caught.value), caught.value.field) == (
            f"sampling.n is 64; {reported}",
            "sampling.n",
        )


def test_a_message_shows_a_value_escaped_and_short() -> None:
    message = str(invalid("request_id", "\x1b[31m\u202e" + "x" * 1000, "something else"))
    assert r"\x1b[31m\u202e" in message
    assert not {"\x1b", "\u202e"} & set(message)
    assert len(message) < 200
