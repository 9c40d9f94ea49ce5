"""What a server answers whose base model reads texts and continues none."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from loramux import _server_wire
from loramux.errors import FailedPreconditionError, LoramuxError
from loramux.v1 import generation_pb2
from loramux_adapters import PackageError
from loramux_adapters.embedding import Embedding, Pooling
from loramux_server.config import ServerConfig
from loramux_server.engine_link.probe import Probe
from loramux_server.inference import open_inference_pb2
from loramux_server.metrics.series import Metrics
from loramux_server.models.base_embedding import BaseEmbedding
from loramux_server.models.text_format import read_text_format
from loramux_server.services.adapters.intake import Intake
from loramux_server.services.open_inference import OpenInferenceService
from loramux_server.services.server import ServerService
from loramux_server.services.tasks import task_on
from loramux_server.store.check import _check_invocation
from loramux_server.store.package_settings import PackageSettings
from loramux_server.store.record import source_of
from loramux_server.wire.ask import Ask
from loramux_server.wire.messages import Ready, decode_from_engine, encode
from loramux_server.wire.model_kind import ModelKind
from tests.server.test_streaming import Served
from tests.support.bases import ROOMY
from tests.support.embedders import write_sentence_files
from tests.support.encoder_tokenizers import wordpiece
from tests.support.open_inference import asking
from tests.support.reads import ReadingEngine, Reads, encoder_info, record_of

ENCODER: dict[str, Any] = {"kind": ModelKind.ENCODER, "architecture": "BertModel"}
TOLD = (
    "the base model, BertModel, is an encoder and does not generate text; call "
    "loramux.v1.ClassificationService.Classify, loramux.v1.QuestionAnsweringService.Answer or "
    "loramux.v1.EmbeddingService.Embed"
)
CONTEXT: Any = SimpleNamespace(time_remaining=lambda: None)


def of_encoder(**more: Any) -> Any:
    return encoder_info(wordpiece().backend_tokenizer.to_str(), **{**ENCODER, **more})


def states_of(ask: Ask) -> Any:
    """Return a state that depends on how it is pooled."""
    return {"mean": [0, 3, 4, 0], "last": [0, 0, 2, 0], "first": [5, 0, 0, 0]}[str(ask.pooling)]


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": "a"},
        {"prompt_token_ids": [5], "sampling": {"prompt_logprobs": 1, "max_tokens": 0}},
        {"messages": [{"role": "user", "content": "a"}]},
        {"prompt": "a", "sampling": {"num_beams": 2}},
        {"prompt": "a", "adapter": "nobody"},
    ],
)
async def test_no_text_is_continued(fields: dict[str, Any]) -> None:
    served = Served(**ENCODER)
    request = generation_pb2.GenerateRequest(**fields)
    with pytest.raises(FailedPreconditionError) as caught:
        await served.service.Generate(request, CONTEXT)
    assert (str(caught.value), caught.value.reason) == (TOLD, "BASE_CONTINUES_NO_TEXT")
    with pytest.raises(FailedPreconditionError, match="is an encoder"):
        async for _ in served.service.StreamGenerate(request, CONTEXT):
            pass
    assert not served.engine.sent


async def test_it_is_no_model_of_the_other_protocol() -> None:
    served = Served(**ENCODER, name="tiny")
    service = OpenInferenceService(
        generation=served.service, registry=cast(Any, None), quarantine=served.engine.quarantine,
        model=served.model, metrics=Metrics(), is_ready=lambda: True,
    )  # fmt: skip
    ready = await service.ModelReady(open_inference_pb2.ModelReadyRequest(name="tiny"), CONTEXT)
    assert not ready.ready
    calls: list[Callable[[], Any]] = [
        lambda: service.ModelMetadata(
            open_inference_pb2.ModelMetadataRequest(name="tiny"), CONTEXT
        ),
        lambda: service.ModelInfer(asking("tiny", "a"), CONTEXT),
    ]
    for call in calls:
        with pytest.raises(LoramuxError, match="is an encoder") as caught:
            await call()
        assert caught.value.reason == "BASE_CONTINUES_NO_TEXT"


@pytest.mark.parametrize(
    ("asked", "note", "base", "wanted"),
    [
        ({}, {}, {}, ("mean", True)),
        ({}, {}, {"pooling": "first", "normalize": False}, ("first", False)),
        ({}, {"normalize": False}, {"pooling": "first"}, ("first", False)),
        ({}, {"pooling": "last"}, {"pooling": "first", "normalize": False}, ("last", False)),
        ({"pooling": 3, "normalize": False}, {"pooling": "last"}, {}, ("first", False)),
    ],
)
async def test_vectors_are_made_as_request_package_and_base_say(
    asked: dict[str, Any], note: dict[str, object], base: dict[str, object],
    wanted: tuple[str, bool],
) -> None:  # fmt: skip
    embedding = BaseEmbedding(base).on(ModelKind.ENCODER)
    for adapter in ("", "adapter"):
        if note and not adapter:
            continue
        reads = Reads(
            of_encoder(embedding=embedding),
            states_of,
            task="",
            settings=PackageSettings(embedding=note),
        )
        response = await reads.embed({"text": "a premise"}, adapter=adapter, **asked)
        (sent,) = reads.engine.sent
        # What pools takes the whole text, also for its first token.
        assert sent.prompt == wordpiece()("a premise").input_ids
        assert (str(sent.pooling), response.is_normalized) == wanted
        state = np.array(states_of(sent), float)
        if wanted[1]:
            state /= np.linalg.norm(state)
        assert list(response.embeddings[0].values) == pytest.approx(state.tolist())
        assert response.usage.prompt_tokens == len(sent.prompt)


async def test_what_cannot_be_made_of_the_base_s_own_folder_is_refused_until_pooling_is_said(
    tmp_path: Path,
) -> None:
    wordpiece().save_pretrained(str(tmp_path))
    assert read_text_format(str(tmp_path)).embedding.on(ModelKind.ENCODER).pooling == "mean"
    assert read_text_format(str(tmp_path)).embedding.on(ModelKind.DECODER).pooling == "last"
    write_sentence_files(tmp_path, "cls", normalizes=False)
    found = read_text_format(str(tmp_path)).embedding
    assert found.on(ModelKind.ENCODER) == Embedding(Pooling.FIRST, normalize=False)
    assert not found.fault
    modules = json.loads((tmp_path / "modules.json").read_text())
    modules.append({"path": "2_Dense", "type": "sentence_transformers.models.Dense"})
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    embedding = read_text_format(str(tmp_path)).embedding
    info = of_encoder(embedding=embedding.on(ModelKind.ENCODER), embedding_fault=embedding.fault)
    reads = Reads(info, states_of, task="")
    with pytest.raises(FailedPreconditionError, match=r"Dense' is not supp.*set pooling") as caught:
        await reads.embed({"text": "a"})
    assert caught.value.field == "pooling"
    response = await reads.embed({"text": "a"}, pooling=2)
    assert response.pooling == 2


async def test_an_adapter_without_a_head_embeds_and_does_nothing_else() -> None:
    reads = Reads(of_encoder(), states_of, task="")
    assert (await reads.embed({"text": "a"}, adapter="adapter")).adapter.name == "adapter"
    calls: list[Callable[[], Any]] = [
        lambda: reads.classify({"text": "a"}),
        lambda: reads.answer({"question": "a", "context": "b"}),
    ]
    for call in calls:
        with pytest.raises(
            FailedPreconditionError, match=r"which embeds texts and .* call lora.*Em"
        ):
            await call()
    record, decoder = record_of(""), encoder_info("{}")
    assert (task_on(record, of_encoder()), task_on(record, decoder)) == ("FEATURE_EXTRACTION", "")
    assert task_on(record_of("SEQ_CLS"), of_encoder()) == "SEQ_CLS"


def test_an_adapter_that_waits_for_tokens_of_a_prompt_does_not_fit() -> None:
    _check_invocation((5,), ROOMY)
    with pytest.raises(PackageError, match="requires a decoder-only base model"):
        _check_invocation((5,), replace(ROOMY, kind=ModelKind.ENCODER))


async def test_what_is_tried_out_is_read_and_not_continued() -> None:
    info = of_encoder()
    engine = ReadingEngine(states_of)
    intake = Intake(
        registry=cast(Any, SimpleNamespace(source_of=lambda record: source_of(record, Path()))),
        engine=engine, model=info, base=ROOMY, max_upload_bytes=1,
    )  # fmt: skip
    await intake.load(record_of(""))
    assert engine.sent[0].pooling is Pooling.MEAN
    engine._scores = lambda _: [1, 2]
    await intake.load(record_of("SEQ_CLS"))
    assert engine.sent[1].pooling is None
    assert engine.sent[1].adapter and engine.sent[1].adapter.task == "SEQ_CLS"
    reported: list[bool] = []
    probe = Probe(engine, info, interval=1, on_result=reported.append)
    engine._scores = states_of
    assert await probe._makes_a_token()
    assert engine.sent[2].pooling is Pooling.MEAN


@pytest.mark.parametrize("kind", ModelKind)
async def test_callers_learn_of_what_kind_it_is(kind: ModelKind) -> None:
    info = of_encoder(kind=kind, embedding=Embedding(Pooling.FIRST, normalize=False))
    ready = decode_from_engine(encode(Ready(info)))
    assert isinstance(ready, Ready)
    assert ready.model == info
    service = ServerService(ready.model, ServerConfig(model=""), cast(Any, None))
    response = await service.GetServerInfo(cast(Any, None), CONTEXT)
    assert _server_wire.server_info(response).kind == str(kind)
