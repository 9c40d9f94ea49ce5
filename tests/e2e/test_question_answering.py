"""Adapters that find answers in texts, as PEFT saved them, beside others: over the socket."""

import asyncio
import dataclasses
import json
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from loramux import AsyncClient, Client, QuestionAnswering, _wire
from loramux.errors import FailedPreconditionError, InvalidArgumentError, LoramuxError
from loramux.v1 import question_answering_pb2
from loramux.v1.question_answering_pb2_grpc import QuestionAnsweringServiceStub
from tests.support.classifiers import expected_logits
from tests.support.heads import Served, run
from tests.support.questions import Found, pipeline_answers

QUESTION = "Who left the city 🙂?"
CONTEXT = "Ann left the naïve city in May. Bob left it, too: the 🙂 city was his, and hers."
OPTIONS: list[dict[str, Any]] = [
    {},
    {"top_k": 5, "max_answer_tokens": 4},
    {"top_k": 3, "handle_impossible_answer": True, "align_to_words": False},
    {"top_k": 4, "context_first": True},
    {"top_k": 4, "max_window_tokens": 40, "window_overlap_tokens": 6, "align_to_words": False},
]


@pytest.fixture
def client(served_heads: Served) -> Iterator[Client]:
    with served_heads.server.client() as client:
        yield client


def wanted(served: Served, question: str, context: str, **options: Any) -> list[Found]:
    def logits(ids: Sequence[int]) -> torch.Tensor:
        return expected_logits(served.adapters["finder"], ids)

    # The demo's tokenizer knows no words: to it a text is one.
    options["align_to_words"] = False
    return pipeline_answers(logits, served.tokenizer, question, context, **options)


def check(answer: QuestionAnswering, expected: list[Found]) -> None:
    found = answer.results[0].answers
    assert [(each.begin, each.end, each.text) for each in found] == [
        (each.begin, each.end, each.text) for each in expected
    ]
    assert [each.score for each in found] == pytest.approx(
        [each.score for each in expected], rel=1e-3
    )


def test_answers_are_those_of_the_pipeline_beside_other_work(
    served_heads: Served, client: Client
) -> None:
    before = served_heads.server.metrics()
    with ThreadPoolExecutor(12) as pool:
        written = [
            pool.submit(client.generate, "cat ->", adapter=name, temperature=0, max_tokens=12)
            for name in ("upper", None)
        ]
        labelled = pool.submit(client.classify, CONTEXT, adapter="tags")
        asked = [
            pool.submit(client.answer, QUESTION, CONTEXT, adapter="finder", **options)
            for options in OPTIONS
        ]
        answers = [each.result() for each in asked]
        assert all(each.result().text for each in written)
        assert labelled.result().results
    for answer, options in zip(answers, OPTIONS, strict=True):
        check(answer, wanted(served_heads, QUESTION, CONTEXT, **options))
        assert (answer.adapter.name, answer.usage.completion_tokens) == ("finder", 0)
    assert [answer.results[0].num_windows for answer in answers[:4]] == [1] * 4
    assert answers[4].results[0].num_windows > 1
    best = answers[0].results[0].answers[0]
    assert (answers[0].text, answers[0].score) == (best.text, best.score)
    assert best.text == CONTEXT[best.begin : best.end]
    num_tokens = len(served_heads.tokenizer(QUESTION, CONTEXT).input_ids)
    assert answers[0].usage.prompt_tokens == num_tokens
    assert client.adapters.get("finder").task == "QUESTION_ANS"
    count = 'loramux_requests_total{adapter="finder",outcome="ok"}'
    assert served_heads.server.metrics()[count] - before.get(count, 0) == len(OPTIONS)


def test_questions_of_one_request_are_answered_each_on_its_own(
    served_heads: Served, client: Client
) -> None:
    questions = [QUESTION, "When?"]
    for contexts in (CONTEXT, [CONTEXT, CONTEXT[::-1]]):
        answer = client.answer(questions, contexts, adapter="finder", request_id="both")
        assert answer.request_id == "both"
        texts = [contexts] * 2 if isinstance(contexts, str) else contexts
        for question, context, result in zip(questions, texts, answer.results, strict=True):
            (one,) = wanted(served_heads, question, context)
            assert (result.text, result.answers[0].begin) == (one.text, one.begin)
            assert result.score == pytest.approx(one.score, rel=1e-3)
    with pytest.raises(InvalidArgumentError, match="2 questions and 3 contexts"):
        client.answer(questions, ["a"] * 3, adapter="finder")


def test_what_the_prefix_cache_knows_is_read_again(served_heads: Served, client: Client) -> None:
    context = CONTEXT * 3
    expected = wanted(served_heads, QUESTION, context, top_k=3)
    for _ in range(2):
        check(client.answer(QUESTION, context, adapter="finder", top_k=3), expected)


def test_a_context_that_does_not_fit_is_read_in_windows_or_refused(
    served_heads: Served, client: Client
) -> None:
    length = client.info().context_length
    context = CONTEXT * (length // len(served_heads.tokenizer(CONTEXT).input_ids) + 1)
    with pytest.raises(InvalidArgumentError, match="set max_window_tokens") as caught:
        client.answer(QUESTION, context, adapter="finder")
    assert caught.value.reason == "CONTEXT_LENGTH_EXCEEDED"
    assert caught.value.field == "inputs[0].context"
    options: dict[str, Any] = {"max_window_tokens": 200, "align_to_words": False}
    answer = client.answer(QUESTION, context, adapter="finder", **options)
    check(answer, wanted(served_heads, QUESTION, context, **options))
    assert answer.usage.prompt_tokens > length


def test_each_adapter_does_what_it_was_trained_for(client: Client) -> None:
    calls: list[tuple[Any, str]] = [
        (lambda: client.generate("a", adapter="finder"), "QuestionAnsweringService.Answer"),
        (lambda: client.classify("a", adapter="finder"), "QuestionAnsweringService.Answer"),
        (lambda: client.answer("a", "b", adapter="upper"), "GenerationService.Generate"),
        (lambda: client.answer("a", "b", adapter="mood"), "ClassificationService.Classify"),
    ]
    for call, method in calls:
        with pytest.raises(FailedPreconditionError, match=f"call loramux.v1.{method}") as caught:
            call()
        assert (caught.value.reason, caught.value.field) == ("ADAPTER_TASK_MISMATCH", "adapter")


BAD: list[tuple[dict[str, Any], str, str]] = [
    ({"adapter": ""}, "adapter", "the base model has no question-answering head"),
    ({"adapter": "a/b/c"}, "adapter", ""),
    ({"inputs": []}, "inputs", "0 entries"),
    ({"inputs": [{"question": "a", "context": "b"}] * 65}, "inputs", "1 to 64"),
    ({"inputs": [{"question": "", "context": "b"}]}, "inputs[0].question", "a text"),
    ({"inputs": [{"question": "a", "context": ""}]}, "inputs[0].context", "a text"),
    ({"inputs": [{"question": "a", "context": "b " * 200_000}]}, "inputs", "bytes of text"),
    ({"inputs": [{"question": "a", "context": "b" * 70_000}]}, "inputs[0].context", "white space"),
    ({"top_k": 101}, "top_k", "1 to 100"),
    ({"max_answer_tokens": 0}, "max_answer_tokens", "1 to 512"),
    ({"max_window_tokens": 100_000}, "max_window_tokens", "the context of the model"),
    ({"window_overlap_tokens": 5}, "window_overlap_tokens", "max_window_tokens"),
    ({"request_id": "a" * 129}, "request_id", "printable"),
    ({"routing_key": "a" * 257}, "routing_key", "256"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "field", "message"), BAD)
def test_a_bad_request_gets_a_precise_error(
    client: Client, fields: dict[str, Any], field: str, message: str
) -> None:
    sound: dict[str, Any] = {
        "adapter": "finder",
        "inputs": [{"question": "a", "context": "b"}],
    }
    request = question_answering_pb2.AnswerRequest(**sound | fields)
    stub = QuestionAnsweringServiceStub(client._channel)
    with pytest.raises(LoramuxError) as caught, _wire.raising():
        stub.Answer(request, timeout=60)
    assert (caught.value.reason, caught.value.field) == ("INVALID_FIELD", field)
    assert message in str(caught.value)


def test_an_upload_is_tried_and_answers(
    served_heads: Served, client: Client, tmp_path: Path
) -> None:
    shutil.copytree(served_heads.folder / "finder", tmp_path / "finder")
    (tmp_path / "finder" / "loramux.json").write_text('{"licence": "MIT"}')
    uploaded = client.adapters.upload("uploaded-finder", tmp_path / "finder")
    try:
        assert (uploaded.task, uploaded.tier) == ("QUESTION_ANS", "device")
        before = client.answer(QUESTION, CONTEXT, adapter="finder")
        after = client.answer(QUESTION, CONTEXT, adapter="uploaded-finder:1")
        assert after.adapter.digest != before.adapter.digest
        assert after.results == before.results
    finally:
        client.adapters.delete("uploaded-finder")


def test_the_command_line_and_the_other_client_say_the_same(
    served_heads: Served, client: Client
) -> None:
    target = served_heads.server.target
    answer = client.answer(QUESTION, CONTEXT, adapter="finder", top_k=2)

    async def ask() -> QuestionAnswering:
        async with AsyncClient(target) as other:
            return await other.answer(QUESTION, CONTEXT, adapter="finder", top_k=2)

    assert asyncio.run(ask()).results == answer.results
    command = ["answer", QUESTION, CONTEXT, "-a", "finder", "--top-k", "2", "-s", target]
    assert run(*command).splitlines() == [
        f"{each.score:.4f}\t{each.begin}-{each.end}\t{each.text}"
        for each in answer.results[0].answers
    ]
    found = json.loads(run(*command, "--json"))
    assert found["results"] == [json.loads(json.dumps(dataclasses.asdict(answer.results[0])))]
