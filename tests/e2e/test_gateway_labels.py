"""`/classify`, `/score` and `/rerank`: a real gateway and a real server."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from loramux import Client
from loramux.gateway.text_batches import MAX_TEXTS_PER_CALL
from tests.support.classifiers import expected_logits
from tests.support.gateway import RunningGateway
from tests.support.heads import LABELS, Served, run

TEXTS = ["cat ->", "A naïve 🙂 abandons everything", ""]
QUERY = "who left?"
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def gateway(
    tmp_path_factory: pytest.TempPathFactory, served_heads: Served
) -> Iterator[RunningGateway]:
    with RunningGateway(tmp_path_factory.mktemp("gateway"), served_heads.server.target) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def direct(served_heads: Served) -> Iterator[Client]:
    with served_heads.server.client() as client:
        yield client


def post(gateway: RunningGateway, path: str, body: dict[str, Any]) -> Any:
    answer = gateway.post(path, body)
    assert answer.status == 200, answer.body
    return answer.json


def logits(served: Served, name: str, *texts: str) -> torch.Tensor:
    return expected_logits(served.adapters[name], served.tokenizer(*texts).input_ids)


@pytest.mark.parametrize("path", ["/classify", "/v1/classify"])
def test_texts_have_the_likeliest_label_and_the_score_of_each(
    gateway: RunningGateway, served_heads: Served, path: str
) -> None:
    ids = served_heads.tokenizer(TEXTS[0]).input_ids
    inputs = [*TEXTS, ids, ["cat ->", "dog"]]
    found = post(gateway, path, {"model": "mood", "input": inputs})
    wanted = [logits(served_heads, "mood", text) for text in [*TEXTS, TEXTS[0]]]
    wanted.append(logits(served_heads, "mood", "cat ->", "dog"))
    for index, (entry, each) in enumerate(zip(found["data"], wanted, strict=True)):
        likely = each.softmax(0)
        assert (entry["index"], entry["num_classes"]) == (index, 3)
        assert entry["label"] == LABELS["mood"][int(likely.argmax())]
        assert entry["probs"] == pytest.approx(likely.tolist(), abs=TOLERANCE)
    assert (found["object"], found["model"]) == ("list", "mood")
    raw = post(gateway, path, {"model": "mood", "input": TEXTS[0], "use_activation": False})
    assert raw["data"][0]["probs"] == pytest.approx(wanted[0].tolist(), abs=TOLERANCE)
    assert raw["usage"] == {"prompt_tokens": len(ids), "total_tokens": len(ids)}
    (whole,) = post(gateway, path, {"model": "mood", "input": ids})["data"]
    assert whole["probs"] == pytest.approx(wanted[0].softmax(0).tolist(), abs=TOLERANCE)
    several = post(gateway, path, {"model": "topics", "input": TEXTS[0]})["data"][0]["probs"]
    expected = logits(served_heads, "topics", TEXTS[0]).sigmoid()
    assert several == pytest.approx(expected.tolist(), abs=TOLERANCE)


@pytest.mark.parametrize("path", ["/score", "/v1/score"])
def test_a_score_is_the_sigmoid_of_the_one_output(
    gateway: RunningGateway, served_heads: Served, path: str
) -> None:
    def scores(first: Any, second: Any, **more: Any) -> list[float]:
        body = {"model": "grade", "text_1": first, "text_2": second, **more}
        data = post(gateway, path, body)["data"]
        assert [entry["index"] for entry in data] == list(range(len(data)))
        return [entry["score"] for entry in data]

    one_with_each = torch.cat([logits(served_heads, "grade", QUERY, text) for text in TEXTS])
    wanted = one_with_each.sigmoid().tolist()
    assert scores(QUERY, TEXTS) == pytest.approx(wanted, abs=TOLERANCE)
    assert scores([QUERY], TEXTS[1]) == pytest.approx(wanted[1:2], abs=TOLERANCE)
    assert scores([QUERY] * 2, TEXTS[:2]) == pytest.approx(wanted[:2], abs=TOLERANCE)
    raw = scores(QUERY, TEXTS, use_activation=False)
    assert raw == pytest.approx(one_with_each.tolist(), abs=TOLERANCE)


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
def test_documents_are_ordered_by_score(
    gateway: RunningGateway, served_heads: Served, direct: Client, path: str
) -> None:
    body = {"model": "grade", "query": QUERY, "documents": TEXTS}
    wanted = torch.cat([logits(served_heads, "grade", QUERY, text) for text in TEXTS])
    best = wanted.sort(descending=True)
    found = post(gateway, path, body)["results"]
    assert [entry["index"] for entry in found] == best.indices.tolist()
    assert [entry["document"] for entry in found] == [
        {"text": TEXTS[index]} for index in best.indices.tolist()
    ]
    assert [entry["relevance_score"] for entry in found] == pytest.approx(
        best.values.sigmoid().tolist(), abs=TOLERANCE
    )
    as_objects = [{"text": text} for text in TEXTS]
    (first,) = post(
        gateway, path, {**body, "documents": as_objects, "top_n": 1, "return_documents": False}
    )["results"]
    assert first == {key: value for key, value in found[0].items() if key != "document"}
    headers = gateway.post(path, {**body, "documents": ["a"]}).headers
    digest = direct.adapters.get("grade").digest
    assert headers["x-loramux-adapter"] == f"public/grade:1@{digest}"


def test_many_documents_are_several_calls_of_the_server(
    gateway: RunningGateway, served_heads: Served
) -> None:
    documents = [f"document {number}" for number in range(MAX_TEXTS_PER_CALL + 3)]
    body = {"model": "grade", "query": QUERY, "documents": documents, "use_activation": False}
    found = post(gateway, "/rerank", body)["results"]
    reported = {entry["index"]: entry["relevance_score"] for entry in found}
    assert sorted(reported) == list(range(len(documents)))
    assert list(reported.values()) == sorted(reported.values(), reverse=True)
    for index in (0, MAX_TEXTS_PER_CALL, MAX_TEXTS_PER_CALL + 2):
        expected = logits(served_heads, "grade", QUERY, documents[index])
        assert reported[index] == pytest.approx(expected.item(), abs=TOLERANCE)


def test_a_file_of_requests_may_have_them(served_heads: Served, tmp_path: Path) -> None:
    body = {"model": "grade", "query": QUERY, "documents": ["a", "b"]}
    line = {"custom_id": "a", "method": "POST", "url": "/v1/rerank", "body": body}
    (tmp_path / "asked.jsonl").write_text(json.dumps(line))
    run(
        "batch", str(tmp_path / "asked.jsonl"), "-o", str(tmp_path / "told.jsonl"),
        "--server", served_heads.server.target,
    )  # fmt: skip
    answer = json.loads((tmp_path / "told.jsonl").read_text())
    assert len(answer["response"]["body"]["results"]) == 2


UNBROKEN = "a" * 70_000
BAD: list[tuple[str, dict[str, Any], int, str, str]] = [
    ("/classify", {"model": "nobody"}, 404, "model", "nobody"),
    ("/classify", {"model": "base"}, 400, "model", "the base model, which has no labels"),
    ("/classify", {"model": "upper"}, 400, "model", "GenerationService.Generate"),
    ("/classify", {"model": "tags"}, 400, "model", "classifies tokens (task TOKEN_CLS)"),
    ("/classify", {"input": []}, 400, "input", "lists must not be empty"),
    ("/classify", {"input": [[]]}, 400, "input", "lists must not be empty"),
    ("/classify", {"input": [["a", "b", "c"]]}, 400, "input", "pairs of texts"),
    ("/classify", {"input": ["a", [5, 10**6]]}, 400, "input[1]", "input[1] holds token 1000000"),
    ("/classify", {"input": ["a"] * 2049}, 400, "input", "at most 2048"),
    ("/classify", {"messages": []}, 400, "messages", "is not a field of this request"),
    ("/classify", {"timeout": 0}, 400, "timeout", "seconds above 0"),
    (
        "/score",
        {"model": "mood"},
        400,
        "model",
        "which has 3 labels; name one with a single",
    ),
    ("/score", {"text_1": ["a", "b"]}, 400, "text_2", "text_2 has 1 entries and text_1 has 2"),
    ("/score", {"text_2": []}, 400, "text_2", "is empty"),
    ("/score", {"text_1": []}, 400, "text_1", "is empty"),
    ("/score", {"text_1": UNBROKEN}, 400, "text_1", "text_1 has 70000 characters"),
    ("/score", {"text_2": ["a", UNBROKEN]}, 400, "text_2[1]", "text_2[1] has 70000 characters"),
    ("/score", {"text_1": [UNBROKEN], "text_2": ["a", "b"]}, 400, "text_1[0]", "characters"),
    ("/rerank", {"model": "topics"}, 400, "model", "which has 4 labels"),
    ("/rerank", {"query": UNBROKEN}, 400, "query", "query has 70000 characters"),
    ("/rerank", {"documents": ["a"] * 70 + [UNBROKEN]}, 400, "documents[70]", "70000 characters"),
    ("/rerank", {"documents": ["a", "b " * 4000]}, 400, "documents[1]", "the context has"),
    ("/rerank", {"documents": []}, 400, "documents", "is empty"),
    ("/rerank", {"documents": [{"title": "a"}]}, 400, "documents[0]", "field title"),
    ("/rerank", {"top_n": -1}, 400, "top_n", "1 or more, or 0 for all"),
    (
        "/rerank",
        {"max_tokens_per_doc": 9},
        400,
        "max_tokens_per_doc",
        "is not a field of this request",
    ),
]
SOUND: dict[str, dict[str, Any]] = {
    "/classify": {"model": "mood", "input": "a"},
    "/score": {"model": "grade", "text_1": "a", "text_2": "b"},
    "/rerank": {"model": "grade", "query": "a", "documents": ["b"]},
}


@pytest.mark.parametrize(("path", "fields", "status", "param", "message"), BAD)
def test_a_bad_request_gets_a_precise_error(
    gateway: RunningGateway, path: str, fields: dict[str, Any], status: int, param: str,
    message: str,
) -> None:  # fmt: skip
    answer = gateway.post(path, SOUND[path] | fields)
    assert (answer.status, answer.error["param"]) == (status, param), answer.body
    assert message in answer.error["message"]
    assert gateway.get(path).status == 405
