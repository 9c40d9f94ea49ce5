"""Adapters that classify, as PEFT saved them, beside those that write: over the socket."""

import asyncio
import dataclasses
import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from loramux import AsyncClient, Classification, Client
from loramux.errors import (
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidArgumentError,
    LoramuxError,
    ResourceExhaustedError,
)
from loramux.v1 import classification_pb2
from loramux.v1.classification_pb2_grpc import ClassificationServiceStub
from tests.support.classifiers import expected_logits
from tests.support.collector import Got
from tests.support.heads import HEADS, LABELS, Served, run

TOLERANCE = 1e-4
TEXTS = ["cat ->", "A naïve 🙂 abandons everything but its own good humour", "x"]
CLASSIFIERS = ["mood", "topics", "grade", "tags"]


@pytest.fixture
def served(served_heads: Served) -> Served:
    return served_heads


@pytest.fixture
def client(served: Served) -> Iterator[Client]:
    with served.server.client() as client:
        yield client


def test_texts_are_classified_in_one_batch_with_prompts_that_are_continued(
    served: Served, client: Client
) -> None:
    options: dict[str, Any] = {"temperature": 0, "max_tokens": 120, "ignore_eos": True}
    writers = ["upper", "reverse", None]
    alone = [client.generate("abandon ->", adapter=name, **options).token_ids for name in writers]
    before = served.server.metrics()
    with ThreadPoolExecutor(12) as pool:
        written = [
            pool.submit(client.generate, "abandon ->", adapter=name, **options)
            for _ in range(2) for name in writers
        ]  # fmt: skip
        names = CLASSIFIERS * 2
        classified = [
            pool.submit(client.classify, TEXTS, adapter=name, logits=True) for name in names
        ]
        assert [each.result().token_ids for each in written] == alone * 2
        answers = [each.result() for each in classified]
    for name, answer in zip(names, answers, strict=True):
        for text, result in zip(TEXTS, answer.results, strict=True):
            expected = served.logits(name, text)
            rows = [each.logits for each in result.tokens] or result.logits
            torch.testing.assert_close(torch.tensor(rows), expected, rtol=0, atol=TOLERANCE)
        assert answer.adapter.name == name
        assert answer.adapter.digest == client.adapters.get(name).digest
        num_tokens = sum(len(served.tokenizer(text).input_ids) for text in TEXTS)
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (num_tokens, 0)
        assert client.adapters.get(name).task == HEADS[name][0]
    after = served.server.metrics()
    for name in ("mood", "tags"):
        count = f'loramux_requests_total{{adapter="{name}",outcome="ok"}}'
        assert after[count] - before.get(count, 0) == 2
    steps, requests = (
        after[f"loramux_batch_requests_{what}"] - before[f"loramux_batch_requests_{what}"]
        for what in ("count", "sum")
    )
    assert requests > steps  # some were together


def test_texts_have_spans_of_their_way_through_the_engine(served: Served, client: Client) -> None:
    def is_whole(spans: list[Got]) -> bool:
        return any(span.attributes.get("gen_ai.response.id") == "traced" for span in spans)

    answer = client.classify(TEXTS, adapter="mood", request_id="traced")
    (trace_id,) = {
        span.trace_id
        for span in served.collector.wait(is_whole)
        if span.attributes.get("gen_ai.response.id") == "traced"
    }
    found = served.collector.of(trace_id)
    (whole,) = [span for span in found if span.attributes.get("gen_ai.response.id") == "traced"]
    assert whole.name.startswith("classify ")
    assert whole.attributes["gen_ai.usage.input_tokens"] == answer.usage.prompt_tokens
    assert whole.attributes["loramux.texts"] == len(TEXTS)
    assert whole.attributes["loramux.adapter.digest"] == answer.adapter.digest
    assert not any(text in span.text for text in TEXTS[:2] for span in found)
    parts = [span for span in found if span.parent == whole.id]
    for name in ("queue", "prefill"):
        reported = [
            span.attributes["loramux.completion.index"] for span in parts if span.name == name
        ]
        assert sorted(reported) == list(range(len(TEXTS)))
    ids = {span.id for span in parts if span.name == "prefill"}
    steps = [span for span in found if span.name == "engine step" and span.parent in ids]
    assert {step.parent for step in steps} == ids
    assert all(step.attributes["loramux.batch.adapters"] >= 1 for step in steps)
    (call,) = [span for span in found if span.id == whole.parent]
    assert call.name == "loramux.v1.ClassificationService/Classify"


def test_scores_come_of_logits_as_the_package_says(served: Served, client: Client) -> None:
    kinds = {"mood": torch.softmax, "topics": lambda x, _: x.sigmoid(), "grade": lambda x, _: x}
    names = {
        "mood": LABELS["mood"], "topics": ["sport", "war", "art", "law"], "grade": ["LABEL_0"]
    }  # fmt: skip
    problems = {"mood": "single_label", "topics": "multi_label", "grade": "regression"}
    for name, kind in kinds.items():
        answer = client.classify(TEXTS[0], adapter=name)
        scores = kind(served.logits(name, TEXTS[0]), 0)
        best = scores.sort(descending=True)
        assert answer.problem_type == problems[name]
        assert answer.labels == tuple(names[name])
        assert [each.index for each in answer.results[0].labels] == best.indices.tolist()
        assert [each.label for each in answer.results[0].labels] == [
            names[name][index] for index in best.indices.tolist()
        ]
        found = torch.tensor([each.score for each in answer.results[0].labels])
        torch.testing.assert_close(found, best.values, rtol=0, atol=TOLERANCE)
        assert answer.label == answer.results[0].labels[0].label
        assert not answer.results[0].logits
    assert len(client.classify(TEXTS[0], adapter="mood", top_k=2).results[0].labels) == 2


def test_tokens_are_placed_in_the_text(served: Served, client: Client) -> None:
    text = TEXTS[1]
    (result,) = client.classify(text, adapter="tags").results
    encoded = served.tokenizer(text, return_offsets_mapping=True)
    assert [token.token_id for token in result.tokens] == encoded.input_ids
    likely = served.logits("tags", text).softmax(-1).max(-1)
    assert [token.label for token in result.tokens] == [
        LABELS["tags"][index] for index in likely.indices.tolist()
    ]
    for token, special, place in zip(
        result.tokens, served.tokenizer(text, return_special_tokens_mask=True).special_tokens_mask,
        encoded.offset_mapping, strict=True,
    ):  # fmt: skip
        assert (token.begin, token.end) == ((None, None) if special else tuple(place))
    seen = {i for token in result.tokens for i in range(token.begin or 0, token.end or 0)}
    assert seen >= {i for i, character in enumerate(text) if not character.isspace()}


def test_token_ids_are_taken_as_they_are(served: Served, client: Client) -> None:
    ids = served.tokenizer(TEXTS[1]).input_ids
    given = client.classify([ids, TEXTS[1]], adapter="tags", logits=True)
    by_ids, by_text = given.results
    assert [token.logits for token in by_ids.tokens] == [token.logits for token in by_text.tokens]
    assert all(token.begin is None for token in by_ids.tokens)


def test_two_texts_are_read_as_the_tokenizer_joins_them(served: Served, client: Client) -> None:
    pairs = [("cat ->", "dog ->"), ("A naïve 🙂", ""), ("", "x"), ["a list", "serves, too"]]
    answer = client.classify([*pairs, "cat ->"], adapter="mood", logits=True)
    ids = [served.tokenizer(*pair).input_ids for pair in pairs]
    for tokens, result in zip(ids, answer.results, strict=False):
        expected = expected_logits(served.adapters["mood"], tokens)
        torch.testing.assert_close(torch.tensor(result.logits), expected, rtol=0, atol=TOLERANCE)
    alone = served.logits("mood", "cat ->")
    torch.testing.assert_close(
        torch.tensor(answer.results[-1].logits), alone, rtol=0, atol=TOLERANCE
    )
    num_alone = len(served.tokenizer("cat ->").input_ids)
    assert answer.usage.prompt_tokens == sum(map(len, ids)) + num_alone
    command = ("classify", "cat ->", "--pair", "dog ->", "--pair", "x", "-a", "mood", "--json")
    reported = json.loads(run(*command, "--server", served.server.target))
    first, second = (each["labels"] for each in reported["results"])
    assert first[0]["score"] == pytest.approx(answer.results[0].score, abs=TOLERANCE)
    assert first != second
    with pytest.raises(InvalidArgumentError, match="labels the tokens of one text") as caught:
        client.classify(["cat", ("cat", "dog")], adapter="tags")
    assert caught.value.field == "inputs[1].text_pair"


def test_a_text_may_fill_the_context(served: Served, client: Client) -> None:
    length = client.info().context_length
    ids = [5 + i % 40 for i in range(length)]
    for name in ("mood", "tags"):
        (result,) = client.classify([ids], adapter=name, logits=True).results
        rows = [token.logits for token in result.tokens] or result.logits
        expected = expected_logits(served.adapters[name], ids)
        torch.testing.assert_close(torch.tensor(rows), expected, rtol=0, atol=TOLERANCE)
    with pytest.raises(InvalidArgumentError, match=f"has {length + 1} tokens") as caught:
        client.classify([[*ids, 5]], adapter="mood")
    assert caught.value.reason == "CONTEXT_LENGTH_EXCEEDED"
    assert caught.value.field == "inputs[0].token_ids"


@pytest.mark.parametrize("name", ["mood", "tags"])
def test_an_adapter_that_classifies_writes_nothing(client: Client, name: str) -> None:
    messages = [{"role": "user", "content": "hi"}]
    calls: list[Any] = [
        lambda: client.generate("cat ->", adapter=name),
        lambda: list(client.stream("cat ->", adapter=name)),
        lambda: client.chat(messages, adapter=name),  # type: ignore[arg-type]
        lambda: client.generate("cat ->", adapter=name, scale=0.5),
        lambda: client.generate("cat ->", adapters={"upper": 0.5, name: 0.5}),
    ]
    for call in calls:
        with pytest.raises(FailedPreconditionError, match=r"ClassificationService\.Cl") as caught:
            call()
        assert caught.value.reason == "ADAPTER_TASK_MISMATCH"
        assert caught.value.field in ("adapter", "adapters[1].adapter")


def test_an_adapter_that_writes_classifies_nothing(client: Client) -> None:
    with pytest.raises(FailedPreconditionError, match=r"GenerationService\.Generate") as caught:
        client.classify("cat", adapter="upper")
    assert (caught.value.reason, caught.value.field) == ("ADAPTER_TASK_MISMATCH", "adapter")


BAD: list[tuple[dict[str, Any], str, str, str]] = [
    ({"adapter": ""}, "INVALID_FIELD", "adapter", "the base model has no classification head"),
    ({"adapter": "nobody"}, "ADAPTER_NOT_FOUND", "adapter", "nobody"),
    ({"adapter": "a/b/c"}, "INVALID_FIELD", "adapter", ""),
    ({"inputs": []}, "INVALID_FIELD", "inputs", "0 entries"),
    ({"inputs": [{"text": "a"}] * 65}, "INVALID_FIELD", "inputs", "1 to 64"),
    ({"inputs": [{"text": "a"}, {}]}, "INVALID_FIELD", "inputs[1].text", "both empty"),
    ({"inputs": [{"text": "a", "token_ids": [5]}]}, "INVALID_FIELD", "inputs[0].text", "both set"),
    ({"inputs": [{"token_ids": [5, -1]}]}, "INVALID_FIELD", "inputs[0].token_ids", "token -1"),
    ({"inputs": [{"text": "a " * 200_000}]}, "INVALID_FIELD", "inputs", "bytes of text"),
    ({"inputs": [{"text_pair": "a"}]}, "INVALID_FIELD", "inputs[0].text", "both empty"),
    ({"inputs": [{"token_ids": [5], "text_pair": "a"}]}, "INVALID_FIELD", "inputs[0].text_pair",
     "the tokens of both texts into token_ids"),
    ({"inputs": [{"text": "a " * 90_000, "text_pair": "b " * 90_000}]}, "INVALID_FIELD", "inputs",
     "bytes of text"),
    ({"inputs": [{"text": "a", "text_pair": "a" * 70_000}]}, "INVALID_FIELD", "inputs[0].text_pair",
     "white space"),
    ({"inputs": [{"text": "a " * 600, "text_pair": "b " * 600}]}, "CONTEXT_LENGTH_EXCEEDED",
     "inputs[0]", "the context has"),
    ({"inputs": [{"text": "a" * 70_000}]}, "INVALID_FIELD", "inputs[0].text", "white space"),
    ({"top_k": 0}, "INVALID_FIELD", "top_k", "1 to 3"),
    ({"top_k": 4}, "INVALID_FIELD", "top_k", "1 to 3"),
    ({"request_id": "a" * 129}, "INVALID_FIELD", "request_id", "printable"),
    ({"routing_key": "a" * 257}, "INVALID_FIELD", "routing_key", "256"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "reason", "field", "message"), BAD)
def test_a_bad_request_gets_a_precise_error(
    client: Client, fields: dict[str, Any], reason: str, field: str, message: str
) -> None:
    sound: dict[str, Any] = {"adapter": "mood", "inputs": [{"text": "cat"}]}
    request = classification_pb2.ClassifyRequest(**sound | fields)
    stub = ClassificationServiceStub(client._channel)
    from loramux import _wire

    with pytest.raises(LoramuxError) as caught, _wire.raising():
        stub.Classify(request, timeout=60)
    assert (caught.value.reason, caught.value.field) == (reason, field)
    assert message in str(caught.value)


def test_an_upload_is_tried_and_keeps_its_labels(
    served: Served, client: Client, tmp_path: Path
) -> None:
    for name in ("tags", "overflows"):
        shutil.copytree(served.folder / name, tmp_path / name)
        # Content that the server has already is not tried again.
        (tmp_path / name / "loramux.json").write_text('{"licence": "MIT"}')
    wanted = client.classify(TEXTS, adapter="tags", logits=True)
    uploaded = client.adapters.upload("uploaded", tmp_path / "tags")
    try:
        assert (uploaded.task, uploaded.tier) == ("TOKEN_CLS", "device")
        assert uploaded.digest != wanted.adapter.digest
        found = client.classify(TEXTS, adapter="uploaded:1", logits=True)
        assert found.labels == tuple(LABELS["tags"])
        for result, of_folder in zip(found.results, wanted.results, strict=True):
            assert [t.label for t in result.tokens] == [t.label for t in of_folder.tokens]
            logits, expected = ([t.logits for t in each.tokens] for each in (result, of_folder))
            # The texts may have been in other batches.
            torch.testing.assert_close(
                torch.tensor(logits), torch.tensor(expected), rtol=0, atol=TOLERANCE
            )
    finally:
        client.adapters.delete("uploaded")
    with pytest.raises(InvalidArgumentError) as caught:
        client.adapters.upload("uploaded", tmp_path / "overflows")
    assert caught.value.reason == "ADAPTER_NOT_FINITE"


def test_a_deadline_that_cannot_be_met_ends_the_call(client: Client) -> None:
    # Refused at once where the engine knows already what the first of the texts cost.
    with pytest.raises((DeadlineExceededError, ResourceExhaustedError)) as caught:
        client.classify([[5] * 200] * 64, adapter="tags", timeout=0.02)
    assert caught.value.reason in ("", "DEADLINE_EXCEEDED", "DEADLINE_UNREACHABLE")
    assert client.classify("cat", adapter="tags").results  # nothing is held


def test_scores_that_are_not_finite_fail_alone_and_are_quarantined(client: Client) -> None:
    sound = client.classify("cat", adapter="mood", logits=True).results
    reasons = []
    for _ in range(4):
        with pytest.raises(FailedPreconditionError) as caught:
            client.classify("cat", adapter="overflows")
        reasons.append(caught.value.reason)
        assert client.classify("cat", adapter="mood", logits=True).results == sound
    assert reasons == ["ADAPTER_NOT_FINITE"] * 3 + ["ADAPTER_QUARANTINED"]


def test_the_command_line_and_the_other_client_say_the_same(served: Served, client: Client) -> None:
    target = served.server.target
    answer = client.classify(TEXTS[0], adapter="mood")

    async def ask() -> Classification:
        async with AsyncClient(target) as other:
            return await other.classify(TEXTS[0], adapter="mood")

    other = asyncio.run(ask())
    assert other.results == answer.results
    reported = run("classify", TEXTS[0], "--adapter", "mood", "--server", target)
    assert (
        reported == "  ".join(f"{x.label} {x.score:.4f}" for x in answer.results[0].labels) + "\n"
    )
    found = json.loads(run("classify", TEXTS[0], "-a", "mood", "--json", "-s", target))
    assert found["results"] == [json.loads(json.dumps(dataclasses.asdict(answer.results[0])))]
    tagged = run("classify", TEXTS[0], "-a", "tags", "-s", target)
    (result,) = client.classify(TEXTS[0], adapter="tags").results
    placed = [token for token in result.tokens if token.begin is not None]
    assert tagged.splitlines() == [
        f"{token.label}\t{token.score:.4f}\t{TEXTS[0][token.begin : token.end]}" for token in placed
    ]
