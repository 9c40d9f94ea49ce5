"""`/v1/embeddings`: OpenAI's client, a real gateway and a real server."""

import base64
import struct
from collections.abc import Iterator
from typing import Any

import openai
import pytest
import torch

from loramux import Client
from loramux.gateway.text_batches import MAX_BYTES_PER_CALL, MAX_TEXTS_PER_CALL, batches
from tests.support.gateway import RunningGateway
from tests.support.heads import Served

TEXTS = ["cat ->", "A naïve 🙂 abandons everything", "x"]
MODELS = ["base", "vectors", "writer", "public/vectors:1"]


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


@pytest.fixture(scope="module")
def client(gateway: RunningGateway) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=gateway.url, api_key="none", max_retries=0) as client:
        yield client


def check(found: Any, wanted: Any) -> None:
    """Demand that vectors are the same but for rounding, which the batch they were in decides."""
    torch.testing.assert_close(torch.tensor(found), torch.tensor(wanted), rtol=0, atol=1e-4)


@pytest.mark.parametrize("model", MODELS)
def test_vectors_are_what_grpc_gives(client: openai.OpenAI, direct: Client, model: str) -> None:
    wanted = direct.embed(TEXTS, adapter=None if model == "base" else model)
    plain = client.embeddings.create(model=model, input=TEXTS, encoding_format="float")
    check([each.embedding for each in plain.data], wanted.vectors)
    assert [each.index for each in plain.data] == [0, 1, 2]
    assert (plain.object, plain.model) == ("list", model)
    assert (plain.usage.prompt_tokens, plain.usage.total_tokens) == (
        wanted.usage.prompt_tokens, wanted.usage.prompt_tokens,
    )  # fmt: skip
    # Where nothing is said, OpenAI's client asks for base64, and takes it apart.
    found = client.embeddings.create(model=model, input=TEXTS)
    check([each.embedding for each in found.data], wanted.vectors)
    encoded = client.embeddings.create(model=model, input=TEXTS, encoding_format="base64")
    raw = [base64.b64decode(str(each.embedding)) for each in encoded.data]
    check([struct.unpack(f"<{len(each) // 4}f", each) for each in raw], wanted.vectors)


def test_every_form_of_input_is_taken(
    client: openai.OpenAI, direct: Client, served_heads: Served
) -> None:
    ids = served_heads.tokenizer(TEXTS[0]).input_ids
    wanted = direct.embed(TEXTS[0], adapter="vectors").vector
    forms: list[Any] = [TEXTS[0], [TEXTS[0]], ids, [ids], [TEXTS[0], TEXTS[0]]]
    for form in forms:
        found = client.embeddings.create(model="vectors", input=form, encoding_format="float")
        check([each.embedding for each in found.data], [wanted] * len(found.data))
    cut = client.embeddings.create(
        model="vectors", input=TEXTS[0], dimensions=3, user="me",
        extra_body={"pooling": "last", "normalize": True},
    )  # fmt: skip
    asked = direct.embed(TEXTS[0], adapter="vectors", dimensions=3, pooling="last", normalize=True)
    check(cut.data[0].embedding, asked.vector)


def test_many_texts_are_several_calls_of_the_server(client: openai.OpenAI, direct: Client) -> None:
    texts = [f"text {number}" for number in range(MAX_TEXTS_PER_CALL + 9)]
    found = client.embeddings.create(model="vectors", input=texts)
    assert [each.index for each in found.data] == list(range(len(texts)))
    for place in (0, MAX_TEXTS_PER_CALL, MAX_TEXTS_PER_CALL + 8):
        wanted = direct.embed(texts[place], adapter="vectors").vector
        check(found.data[place].embedding, wanted)
    assert found.usage.prompt_tokens == sum(
        direct.embed(texts[at : at + 64], adapter="vectors").usage.prompt_tokens for at in (0, 64)
    )


def test_calls_are_bounded_by_texts_and_bytes() -> None:
    half = "é" * (MAX_BYTES_PER_CALL // 4)
    texts: list[str | list[int]] = [half, half, "a", "b" * (2 * MAX_BYTES_PER_CALL), [1] * 10]
    assert [(start, len(part)) for start, part in batches(texts)] == [
        (0, 2),
        (2, 1),
        (3, 1),
        (4, 1),
    ]
    many: list[str | list[int]] = ["a"] * (2 * MAX_TEXTS_PER_CALL + 1)
    assert [(start, len(part)) for start, part in batches(many)] == [(0, 64), (64, 64), (128, 1)]
    assert list(batches(["a"])) == [(0, ["a"])]


BAD: list[tuple[dict[str, Any], int, str, str]] = [
    ({"model": "nobody"}, 404, "model", "nobody"),
    ({"model": ""}, 404, "model", "the base model is called"),
    ({"model": "mood"}, 400, "model", "ClassificationService.Classify"),
    ({"input": ""}, 400, "input", "none of them may be empty"),
    ({"input": ["a", ""]}, 400, "input", "none of them may be empty"),
    ({"input": []}, 400, "input", "none of them may be empty"),
    ({"input": [[5], "a", 3]}, 400, "input", "text, token ids, or a list"),
    ({"input": ["a"] * 2049}, 400, "input", "at most 2048"),
    ({"input": [5, 100_000]}, 400, "input", "input holds token 100000"),
    ({"input": ["a"] * 70 + [[5, 100_000]]}, 400, "input[70]", "input[70] holds token 100000"),
    ({"input": "a" * 70_000}, 400, "input", "input has 70000 characters without white space"),
    ({"dimensions": 0}, 400, "dimensions", "1 to"),
    ({"pooling": "max"}, 400, "pooling", "one of last, mean, first"),
    ({"encoding_format": "int8"}, 400, "encoding_format", "invalid enum value"),
    ({"prompt": "a"}, 400, "prompt", "is not a field of this request"),
    ({"user": "a" * 300}, 400, "user", "256"),
]


@pytest.mark.parametrize(("fields", "status", "param", "message"), BAD)
def test_a_bad_request_gets_a_precise_error(
    gateway: RunningGateway, fields: dict[str, Any], status: int, param: str, message: str
) -> None:
    answer = gateway.post("/v1/embeddings", {"model": "vectors", "input": "a"} | fields)
    assert (answer.status, answer.error["param"]) == (status, param)
    assert message in answer.error["message"]


def test_what_can_be_named_is_listed_and_what_answered_is_reported(
    gateway: RunningGateway, client: openai.OpenAI, direct: Client
) -> None:
    found = {model.id for model in client.models.list()}
    assert {"base", "vectors", "writer", "mood"} <= found
    assert not {"tags", "finder"} & found
    answer = gateway.post("/v1/embeddings", {"model": "vectors", "input": "a"})
    adapter = direct.adapters.get("vectors")
    assert answer.headers["x-loramux-adapter"] == f"public/vectors:1@{adapter.digest}"
    assert (
        "x-loramux-adapter"
        not in gateway.post("/v1/embeddings", {"model": "base", "input": "a"}).headers
    )
    assert gateway.get("/v1/embeddings").status == 405
