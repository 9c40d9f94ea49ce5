"""Texts that take several calls of the server, while their name comes to stand for another."""

import asyncio
import json
from typing import Any, cast

import pytest
from typer.testing import CliRunner

from loramux import _embedding_wire
from loramux.cli import embed as command
from loramux.cli.app import app
from loramux.errors import InvalidArgumentError
from loramux.gateway.caller import Caller
from loramux.gateway.embeddings import Embedding, EmbeddingBody
from loramux.gateway.text_batches import MAX_TEXTS_PER_CALL, MIN_SECONDS
from loramux.v1 import embedding_pb2, generation_pb2

DIGEST = "sha256:" + "a" * 64
CALLER = Caller("mine", "", (), {"x-request-id": "mine"})
TEXTS = [f"text {number}" for number in range(2 * MAX_TEXTS_PER_CALL + 1)]


class Moving:
    """A server where there is a new version at each call, unless one is named."""

    def __init__(self) -> None:
        self.adapters: list[str] = []
        self.seconds: list[float | None] = []

    def answer(self, request: embedding_pb2.EmbedRequest) -> embedding_pb2.EmbedResponse:
        self.adapters.append(request.adapter)
        version = len(self.adapters) if ":" not in request.adapter else 1
        response = embedding_pb2.EmbedResponse(pooling=embedding_pb2.POOLING_LAST)
        if request.adapter:
            response.adapter.CopyFrom(
                generation_pb2.AdapterIdentity(
                    name="vectors", tenant="public", version=version, digest=DIGEST
                )
            )
        for _ in request.inputs:
            response.embeddings.add(values=[version, 0.1])
        response.usage.prompt_tokens = len(request.inputs)
        return response

    async def embed(
        self, request: embedding_pb2.EmbedRequest, caller: Caller, seconds: float | None
    ) -> embedding_pb2.EmbedResponse:
        assert caller is CALLER
        self.seconds.append(seconds)
        return self.answer(request)


def answered(server: Moving, **fields: Any) -> tuple[dict[str, Any], dict[str, str]]:
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def ask() -> None:
        body = EmbeddingBody(input=TEXTS, **fields)
        asked = Embedding.of(body, cast(Any, server), CALLER, "base")
        await asked.whole({"type": "http"}, cast(Any, None), send)

    asyncio.run(ask())
    headers = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return json.loads(b"".join(each.get("body", b"") for each in sent)), headers


def test_the_version_of_the_first_texts_embeds_the_others() -> None:
    server = Moving()
    answer, headers = answered(server, model="vectors")
    assert server.adapters == ["vectors", *[f"public/vectors:1@{DIGEST}"] * 2]
    assert headers["x-loramux-adapter"] == f"public/vectors:1@{DIGEST}"
    assert [each["index"] for each in answer["data"]] == list(range(len(TEXTS)))
    assert {tuple(each["embedding"]) for each in answer["data"]} == {(1.0, 0.10000000149011612)}
    assert answer["usage"] == {"prompt_tokens": len(TEXTS), "total_tokens": len(TEXTS)}


def test_the_base_is_asked_without_a_name() -> None:
    server = Moving()
    _, headers = answered(server, model="base")
    assert server.adapters == [""] * 3
    assert "x-loramux-adapter" not in headers


def test_all_calls_together_have_the_time_that_is_asked_for() -> None:
    server = Moving()
    answered(server, model="vectors")
    assert server.seconds == [None] * 3
    server = Moving()
    answered(server, model="vectors", timeout=60.0)
    first, *others = [cast(float, each) for each in server.seconds]
    assert 60 >= first >= others[0] >= others[1] >= MIN_SECONDS
    server = Moving()
    answered(server, model="vectors", timeout=1e-9)
    assert server.seconds == [MIN_SECONDS] * 3  # what is over is told by the server's own error
    for wrong in (0.0, -1.0, float("nan"), 86_401.0):
        with pytest.raises(InvalidArgumentError, match="expected seconds above 0") as caught:
            answered(Moving(), model="vectors", timeout=wrong)
        assert caught.value.field == "timeout"


def test_the_command_line_asks_for_the_version_of_the_first_texts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = Moving()

    class Client:
        def __init__(self, _: str) -> None:
            pass

        def __enter__(self) -> "Client":
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def embed(self, texts: list[str], *, adapter: str | None, **_: object) -> Any:
            request = embedding_pb2.EmbedRequest(adapter=adapter or "")
            for text in texts:
                request.inputs.add(text=text)
            return _embedding_wire.embedding(server.answer(request))

    monkeypatch.setattr(command, "Client", Client)
    found = CliRunner().invoke(app, ["embed", *TEXTS, "-a", "vectors"])
    assert found.exit_code == 0, found.output
    assert server.adapters == ["vectors", *[f"public/vectors:1@{DIGEST}"] * 2]
    assert {tuple(json.loads(line)) for line in found.stdout.splitlines()} == {
        (1.0, 0.10000000149011612)
    }
