"""Texts that are embedded, with adapters and without, beside other work: over the socket."""

import asyncio
import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from loramux import AsyncClient, Client, Embedding, _wire
from loramux.errors import FailedPreconditionError, InvalidArgumentError, LoramuxError
from loramux.v1 import embedding_pb2
from loramux.v1.embedding_pb2_grpc import EmbeddingServiceStub
from tests.support.embedders import vector_of
from tests.support.heads import VIRTUAL, Served, run

TOLERANCE = 1e-4
TEXTS = ["cat ->", "A naïve 🙂 abandons everything but its own good humour", "x"]
DEFAULTS = {"vectors": ("mean", False), "writer": ("last", True), None: ("last", True)}
"""Adapter -> what its package, or else the server, does where nothing is said."""


@pytest.fixture
def client(served_heads: Served) -> Iterator[Client]:
    with served_heads.server.client() as client:
        yield client


def check(found: Any, wanted: Any) -> None:
    """Demand that vectors are the same but for rounding, which the batch they were in decides."""
    torch.testing.assert_close(torch.tensor(found), torch.tensor(wanted), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", DEFAULTS)
def test_vectors_are_those_of_peft_beside_other_work(
    served_heads: Served, client: Client, name: str | None
) -> None:
    before = served_heads.server.metrics()
    poolings = [None, "last", "mean", "first"]
    with ThreadPoolExecutor(8) as pool:
        written = pool.submit(client.generate, "cat ->", adapter="upper", temperature=0)
        labelled = pool.submit(client.classify, TEXTS, adapter="tags")
        asked = [pool.submit(client.embed, TEXTS, adapter=name, pooling=each) for each in poolings]
        answers = [each.result() for each in asked]
        assert written.result().text
        assert labelled.result().results
    states = [served_heads.states(name, text) for text in TEXTS]
    pooling, normalizes = DEFAULTS[name]
    for answer, each in zip(answers, poolings, strict=True):
        check(
            answer.vectors,
            [vector_of(s, each or pooling, normalize=normalizes).tolist() for s in states],
        )
        assert (answer.pooling, answer.is_normalized) == (each or pooling, normalizes)
        assert (answer.adapter and answer.adapter.name) == name
        is_first = answer.pooling == "first"  # of which no more is read
        assert answer.usage.prompt_tokens == sum(1 if is_first else len(s) for s in states)
        assert answer.usage.completion_tokens == 0
    assert answers[0].vector == answers[0].vectors[0]
    count = f'loramux_requests_total{{adapter="{name or "base"}",outcome="ok"}}'
    assert served_heads.server.metrics()[count] - before.get(count, 0) == len(poolings)


@pytest.mark.parametrize("name", VIRTUAL)
@torch.inference_mode()
def test_vectors_are_made_behind_virtual_tokens(
    served_heads: Served, client: Client, name: str
) -> None:
    ids = torch.tensor([served_heads.tokenizer(TEXTS[1]).input_ids])
    states = served_heads.adapters[name](input_ids=ids).last_hidden_state[0]
    for pooling in ("last", "mean", *(["first"] if name == "keyed" else [])):
        for _ in range(2):  # what stands before a text is kept
            found = client.embed(TEXTS[1], adapter=name, pooling=pooling, normalize=False)
            check(found.vector, vector_of(states, pooling, normalize=False).tolist())
    if name == "asked":
        with pytest.raises(
            FailedPreconditionError, match="the first is the same for all"
        ) as caught:
            client.embed("a", adapter=name, pooling="first")
        assert (caught.value.reason, caught.value.field) == ("INVALID_FIELD", "pooling")


def test_vectors_are_cut_and_then_normalized_as_asked(served_heads: Served, client: Client) -> None:
    states = [served_heads.states("vectors", text) for text in TEXTS]
    for normalize in (True, False):
        answer = client.embed(TEXTS, adapter="vectors", normalize=normalize, dimensions=5)
        check(
            answer.vectors,
            [vector_of(s, "mean", normalize=normalize, dimensions=5).tolist() for s in states],
        )
        lengths = torch.tensor(answer.vectors).norm(dim=1)
        assert torch.allclose(lengths, torch.ones(3), atol=1e-5) == normalize


def test_token_ids_are_taken_as_they_are(served_heads: Served, client: Client) -> None:
    ids = served_heads.tokenizer(TEXTS[1]).input_ids
    given = client.embed([ids, TEXTS[1]], adapter="vectors")
    check(given.vectors[0], given.vectors[1])


def test_a_text_may_fill_the_context(served_heads: Served, client: Client) -> None:
    length = client.info().context_length
    ids = [5 + i % 40 for i in range(length)]
    for pooling in ("last", "mean"):
        assert client.embed([ids], adapter="writer", pooling=pooling).vector
    with pytest.raises(InvalidArgumentError, match=f"has {length + 1} tokens") as caught:
        client.embed([[*ids, 5]])
    assert caught.value.reason == "CONTEXT_LENGTH_EXCEEDED"


def test_each_adapter_does_what_it_was_trained_for(client: Client) -> None:
    calls: list[tuple[Any, str]] = [
        (lambda: client.generate("a", adapter="vectors"), "EmbeddingService.Embed"),
        (lambda: client.classify("a", adapter="vectors"), "EmbeddingService.Embed"),
        (lambda: client.answer("a", "b", adapter="vectors"), "EmbeddingService.Embed"),
        (lambda: client.embed("a", adapter="mood"), "ClassificationService.Classify"),
        (lambda: client.embed("a", adapter="finder"), "QuestionAnsweringService.Answer"),
    ]
    for call, method in calls:
        with pytest.raises(FailedPreconditionError, match=f"call loramux.v1.{method}") as caught:
            call()
        assert (caught.value.reason, caught.value.field) == ("ADAPTER_TASK_MISMATCH", "adapter")
    assert client.adapters.get("vectors").task == "FEATURE_EXTRACTION"
    assert client.adapters.get("writer").task == ""
    assert client.generate("a", adapter="writer", max_tokens=1).usage.completion_tokens == 1


BAD: list[tuple[dict[str, Any], str, str, str]] = [
    ({"adapter": "nobody"}, "ADAPTER_NOT_FOUND", "adapter", "nobody"),
    ({"adapter": "a/b/c"}, "INVALID_FIELD", "adapter", ""),
    ({"inputs": []}, "INVALID_FIELD", "inputs", "0 entries"),
    ({"inputs": [{"text": "a"}] * 65}, "INVALID_FIELD", "inputs", "1 to 64"),
    ({"inputs": [{"text": "a"}, {}]}, "INVALID_FIELD", "inputs[1].text", "both empty"),
    ({"inputs": [{"token_ids": [5, -1]}]}, "INVALID_FIELD", "inputs[0].token_ids", "token -1"),
    ({"inputs": [{"text": "a " * 200_000}]}, "INVALID_FIELD", "inputs", "bytes of text"),
    ({"pooling": 9}, "INVALID_FIELD", "pooling", "a value of Pooling"),
    ({"dimensions": 0}, "INVALID_FIELD", "dimensions", "the width of a hidden state"),
    ({"dimensions": 100_000}, "INVALID_FIELD", "dimensions", "the width of a hidden state"),
    ({"request_id": "a" * 129}, "INVALID_FIELD", "request_id", "printable"),
    ({"routing_key": "a" * 257}, "INVALID_FIELD", "routing_key", "256"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "reason", "field", "message"), BAD)
def test_a_bad_request_gets_a_precise_error(
    client: Client, fields: dict[str, Any], reason: str, field: str, message: str
) -> None:
    sound: dict[str, Any] = {"adapter": "vectors", "inputs": [{"text": "cat"}]}
    request = embedding_pb2.EmbedRequest(**sound | fields)
    stub = EmbeddingServiceStub(client._channel)
    with pytest.raises(LoramuxError) as caught, _wire.raising():
        stub.Embed(request, timeout=60)
    assert (caught.value.reason, caught.value.field) == (reason, field)
    assert message in str(caught.value)
    with pytest.raises(InvalidArgumentError, match="expected one of last, mean, first"):
        client.embed("a", pooling="max")


def test_an_upload_keeps_how_it_makes_vectors(
    served_heads: Served, client: Client, tmp_path: Path
) -> None:
    shutil.copytree(served_heads.folder / "vectors", tmp_path / "vectors")
    (tmp_path / "vectors" / "loramux.json").write_text('{"licence": "MIT"}')
    uploaded = client.adapters.upload("uploaded-vectors", tmp_path / "vectors")
    try:
        assert (uploaded.task, uploaded.tier) == ("FEATURE_EXTRACTION", "device")
        found = client.embed(TEXTS, adapter="uploaded-vectors:1")
        assert (found.pooling, found.is_normalized) == ("mean", False)
        check(found.vectors, client.embed(TEXTS, adapter="vectors").vectors)
    finally:
        client.adapters.delete("uploaded-vectors")


def test_a_trace_shows_them_without_their_text(served_heads: Served, client: Client) -> None:
    answer = client.embed(TEXTS, adapter="vectors", request_id="traced-vectors")
    spans = served_heads.collector.wait(
        lambda found: any(s.attributes.get("gen_ai.response.id") == "traced-vectors" for s in found)
    )
    (whole,) = [s for s in spans if s.attributes.get("gen_ai.response.id") == "traced-vectors"]
    assert whole.name.startswith("embeddings ")
    assert whole.attributes["gen_ai.usage.input_tokens"] == answer.usage.prompt_tokens
    assert not any(text in span.text for text in TEXTS[:2] for span in spans)


def test_the_command_line_and_the_other_client_say_the_same(
    served_heads: Served, client: Client, tmp_path: Path
) -> None:
    target = served_heads.server.target
    answer = client.embed(TEXTS, adapter="vectors", dimensions=4)

    async def ask() -> Embedding:
        async with AsyncClient(target) as other:
            return await other.embed(TEXTS, adapter="vectors", dimensions=4)

    check(asyncio.run(ask()).vectors, answer.vectors)
    command = ["embed", *TEXTS, "-a", "vectors", "--dimensions", "4", "-s", target]
    lines = run(*command).splitlines()
    check([json.loads(line) for line in lines], answer.vectors)
    path = tmp_path / "vectors.npy"
    assert run(*command, "-o", str(path)) == ""
    found = np.load(path)
    assert found.dtype == np.float32
    check(found.tolist(), answer.vectors)
    path = tmp_path / "vectors.jsonl"
    assert run(*command, "-o", str(path)) == ""
    check([json.loads(line) for line in path.read_text().splitlines()], answer.vectors)
