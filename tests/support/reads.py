"""The services that read texts, over an engine that tells of each text what a test wants."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from loramux.v1 import classification_pb2, embedding_pb2, question_answering_pb2
from loramux_server.access.quotas import Quotas
from loramux_server.engine_link.client import EngineClient
from loramux_server.metrics.series import Metrics
from loramux_server.services.calls import Calls
from loramux_server.services.pooling.classification import ClassificationService
from loramux_server.services.pooling.embedding import EmbeddingService
from loramux_server.services.pooling.question_answering import QuestionAnsweringService
from loramux_server.services.pooling.runner import PoolingRunner
from loramux_server.services.request_spans import RequestSpans
from loramux_server.services.texts import Texts
from loramux_server.services.vocabularies import Vocabularies
from loramux_server.statuses import Statuses
from loramux_server.store.package_settings import PackageSettings
from loramux_server.store.record import AdapterRecord, source_of
from loramux_server.wire.adapter_source import AdapterSource
from loramux_server.wire.ask import Ask
from loramux_server.wire.engine_config import EngineConfig
from loramux_server.wire.messages import CacheStats, Report, Scores, Stats, Submit, ToEngine
from loramux_server.wire.model_info import ModelInfo
from tests.support.engine_sizes import sizes_of
from tests.support.policies import KeptPolicies
from tests.support.rooms import open_room

STATS = Stats(
    running=0, waiting=0, used_blocks=0, preemptions=0, prompt_tokens=0, shared_tokens=0,
    device=CacheStats(), host=CacheStats(),
)  # fmt: skip


def encoder_info(tokenizer_json: str, **more: Any) -> ModelInfo:
    """Return what is known of a base model with that tokenizer."""
    fields: dict[str, Any] = {
        "name": "tiny", "architecture": "BertModel", "fingerprint": "", "dtype": "", "device": "",
        "vocab_size": 300, "context_length": 512, "num_parameters": 1, "eos_token_ids": [],
        "layers": {}, "tokenizer_json": tokenizer_json, "adapter_rows": 8, "max_running": 8,
        "num_blocks": 8, "sizes": sizes_of(), "embedding_width": 4,
    }  # fmt: skip
    return ModelInfo(**fields | more)


def record_of(task: str, num_virtual: int = 0) -> AdapterRecord:
    """Return an adapter for `task` with so many virtual tokens, called `adapter`."""
    return AdapterRecord(
        tenant="default", name="adapter", version=1, digest="sha256:0", size_bytes=1, rank=1,
        num_bytes=1, item_bytes=1, edit_bytes=0, virtual_tokens=num_virtual, has_cache=False,
        task=task, method="LORA", invocation=(), target_modules=(), base_model="", source="upload",
        created_at=datetime.now(UTC),
    )  # fmt: skip


class ReadingEngine(EngineClient):
    """Tells at once of each text what `scores` makes of it."""

    def __init__(self, scores: Callable[[Ask], Any]) -> None:
        super().__init__(EngineConfig(model=""), on_report=lambda _: None, on_ready=lambda _: None)
        self.sent: list[Ask] = []
        self._scores = scores
        self.process: Any = SimpleNamespace(
            is_ready=True, send=self._take, seconds_to_ready=1.0, ran_out_of_memory=False
        )

    def _take(self, message: ToEngine) -> None:
        if isinstance(message, Submit):
            self.sent.append(message.ask)
            numbers = np.asarray(self._scores(message.ask), np.float32).tobytes()
            report = Report(stats=STATS, scores=[Scores(message.request_id, numbers)])
            asyncio.get_running_loop().call_soon(self._dispatch, report)


class Reads:
    """The services, of a server of `model` with one adapter."""

    def __init__(
        self, model: ModelInfo, scores: Callable[[Ask], Any], *, task: str = "SEQ_CLS",
        settings: PackageSettings | None = None, num_virtual: int = 0,
    ) -> None:  # fmt: skip
        self.engine, self.model = ReadingEngine(scores), model
        self._record, self._settings = record_of(task, num_virtual), settings or PackageSettings()
        quotas, room = Quotas(KeptPolicies()), open_room()
        runner = PoolingRunner(
            engine=self.engine, registry=cast(Any, self), model=model,
            calls=Calls(Metrics(), quotas, room), statuses=Statuses(),
            texts=Texts(Vocabularies(model)), quotas=quotas, room=room,
            package_settings=cast(Any, self), spans=RequestSpans(), default_timeout=60,
        )  # fmt: skip
        self.classification = ClassificationService(runner)
        self.embedding = EmbeddingService(runner)
        self.answering = QuestionAnsweringService(runner)

    async def classify(self, *inputs: Any, **fields: Any) -> classification_pb2.ClassifyResponse:
        request = classification_pb2.ClassifyRequest(adapter="adapter", inputs=inputs, **fields)
        return await self.classification.Classify(request, _CONTEXT)

    async def embed(self, *inputs: Any, **fields: Any) -> embedding_pb2.EmbedResponse:
        request = embedding_pb2.EmbedRequest(inputs=inputs, **fields)
        return await self.embedding.Embed(request, _CONTEXT)

    async def answer(self, *inputs: Any, **fields: Any) -> question_answering_pb2.AnswerResponse:
        request = question_answering_pb2.AnswerRequest(adapter="adapter", inputs=inputs, **fields)
        return await self.answering.Answer(request, _CONTEXT)

    async def of(self, source: AdapterSource) -> PackageSettings:
        """Stand for the settings of packages."""
        return self._settings

    @contextmanager
    def lease(self, reference: str, *, key: str) -> Iterator[tuple[AdapterRecord, AdapterSource]]:
        """Stand for the registry."""
        yield self._record, source_of(self._record, cast(Any, "nowhere"))


_CONTEXT: Any = SimpleNamespace(time_remaining=lambda: None)
