"""GRPCInferenceService: the Open Inference Protocol of KServe and Triton, on GenerationService.

Each text is a generation request of the caller, which is checked, counted, limited and logged
there.
"""

import asyncio
import secrets
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Iterator
from contextlib import aclosing, contextmanager
from typing import Any, TypeVar

from loramux import __version__
from loramux.errors import InvalidArgumentError, LoramuxError, NotFoundError
from loramux.v1 import generation_pb2
from loramux_server.access.caller import caller
from loramux_server.access.num_calls import set_num_calls
from loramux_server.engine_link.quarantine import Quarantine
from loramux_server.field_errors import invalid
from loramux_server.inference import open_inference_pb2
from loramux_server.metrics.series import Metrics
from loramux_server.observe.call_record import current, part
from loramux_server.open_inference.answers import TextOutput, answer, failed, metadata, streamed
from loramux_server.open_inference.model import reference_of
from loramux_server.open_inference.parsed_request import (
    STREAM,
    TEXT_INPUT,
    ParsedRequest,
    parse_request,
)
from loramux_server.services.generation.service import GenerationService
from loramux_server.services.observer import Observer
from loramux_server.services.tasks import check_continues, check_writes
from loramux_server.services.text_fields import check_readable
from loramux_server.store.record import AdapterRecord
from loramux_server.store.registry import Registry
from loramux_server.transport.rpc import Context
from loramux_server.wire.model_info import ModelInfo

_STRICT_KEY = "triton_grpc_error"
"""Metadata key that asks for errors to end a stream as a gRPC status."""

Result = TypeVar("Result")


class OpenInferenceService:
    """Implements `inference.GRPCInferenceService`."""

    descriptor = open_inference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]

    def __init__(
        self,
        *,
        generation: GenerationService,
        registry: Registry,
        quarantine: Quarantine,
        model: ModelInfo,
        metrics: Metrics,
        is_ready: Callable[[], bool],
    ) -> None:
        self._generation = generation
        self._registry = registry
        self._quarantine = quarantine
        self._model = model
        self._metrics = metrics
        self._is_ready = is_ready

    async def ServerLive(
        self, request: open_inference_pb2.ServerLiveRequest, context: Context
    ) -> open_inference_pb2.ServerLiveResponse:
        """Report that the server answers calls."""
        return open_inference_pb2.ServerLiveResponse(live=True)

    async def ServerReady(
        self, request: open_inference_pb2.ServerReadyRequest, context: Context
    ) -> open_inference_pb2.ServerReadyResponse:
        """Report whether requests are served."""
        return open_inference_pb2.ServerReadyResponse(ready=self._is_ready())

    async def ServerMetadata(
        self, request: open_inference_pb2.ServerMetadataRequest, context: Context
    ) -> open_inference_pb2.ServerMetadataResponse:
        """Describe the server."""
        return open_inference_pb2.ServerMetadataResponse(
            name="loramux", version=__version__, extensions=["parameters"]
        )

    async def ModelReady(
        self, request: open_inference_pb2.ModelReadyRequest, context: Context
    ) -> open_inference_pb2.ModelReadyResponse:
        """Report whether a model can be called; an unknown one cannot."""
        try:
            record = self._named(request.name, request.version)
        except (NotFoundError, InvalidArgumentError):
            return open_inference_pb2.ModelReadyResponse(ready=False)
        is_served = record is None or not (record.task or self._quarantine.refuses(record.digest))
        writes = self._model.tokenizer_json is not None and not self._model.is_encoder
        return open_inference_pb2.ModelReadyResponse(
            ready=is_served and writes and self._is_ready()
        )

    async def ModelMetadata(
        self, request: open_inference_pb2.ModelMetadataRequest, context: Context
    ) -> open_inference_pb2.ModelMetadataResponse:
        """Describe the inputs and outputs of a model."""
        record = self._named(request.name, request.version)
        check_writes(self._model)
        if record is None:
            return metadata(request.name, [])
        check_continues(record, "name")
        return metadata(request.name, self._registry.versions(record.full_name))

    async def ModelInfer(
        self, request: open_inference_pb2.ModelInferRequest, context: Context
    ) -> open_inference_pb2.ModelInferResponse:
        """Answer once every text has its completion."""
        parsed, record = self._parsed(request, may_stream=False)
        return await self._whole(request, parsed, record, context)

    async def ModelStreamInfer(
        self, request: open_inference_pb2.ModelInferRequest, context: Context
    ) -> AsyncGenerator[open_inference_pb2.ModelStreamInferResponse, None]:
        """Answer one of the requests of a stream."""
        try:
            parsed, record = self._parsed(request, may_stream=True)
            if not parsed.is_stream:
                response = await self._whole(request, parsed, record, context)
                yield streamed(response, is_last=True)
                return
            async with aclosing(self._chunks(request, parsed, record, context)) as chunks:
                async for chunk in chunks:
                    yield chunk
        except LoramuxError as error:
            if _is_strict(context):
                raise
            if call := current():
                call.reason = error.reason
            yield failed(request, error)

    async def _whole(
        self,
        request: open_inference_pb2.ModelInferRequest,
        parsed: ParsedRequest,
        record: AdapterRecord | None,
        context: Context,
    ) -> open_inference_pb2.ModelInferResponse:
        """Return the answer to all texts, which run concurrently."""

        async def made(index: int) -> TextOutput:
            with part(), _renaming(parsed, index):
                response = await self._generation.Generate(_one(parsed, index, record), context)
                return TextOutput(response.completions[0], response.usage.prompt_tokens)

        count = len(parsed.texts)
        with set_num_calls(count):
            return answer(request, parsed, record, await _all(map(made, range(count))))

    async def _chunks(
        self,
        request: open_inference_pb2.ModelInferRequest,
        parsed: ParsedRequest,
        record: AdapterRecord | None,
        context: Context,
    ) -> AsyncGenerator[open_inference_pb2.ModelStreamInferResponse, None]:
        """Yield the answer to the only text in chunks."""
        chunks = self._generation.StreamGenerate(_one(parsed, 0, record), context)
        with part(), _renaming(parsed, 0):
            async with aclosing(chunks):
                async for chunk in chunks:
                    made = TextOutput(chunk.delta, chunk.usage.prompt_tokens)
                    is_last = bool(chunk.delta.finish_reason)
                    yield streamed(answer(request, parsed, record, [made]), is_last=is_last)

    def _parsed(
        self, request: open_inference_pb2.ModelInferRequest, *, may_stream: bool
    ) -> tuple[ParsedRequest, AdapterRecord | None]:
        """Return the parsed `request` and the version that it names; None for the base model.

        Raises:
            LoramuxError: It cannot be answered, which counts as a request that failed.
        """
        try:
            parsed = parse_request(request, goes_on=self._model.writing is None)
            if parsed.is_stream and not may_stream:
                raise invalid(STREAM, True, "false: ModelStreamInfer answers with a stream")
            return parsed, self._resolved(request, parsed)
        except LoramuxError as error:
            Observer(self._metrics, caller().tenant).ended(error)
            raise

    def _resolved(
        self, request: open_inference_pb2.ModelInferRequest, parsed: ParsedRequest
    ) -> AdapterRecord | None:
        """Return the version that `request` names now, the same for all of its texts.

        Raises:
            NotFoundError: There is none.
            InvalidArgumentError: The name is invalid, or the base model has no tokenizer.
            FailedPreconditionError: The adapter or the base model does not generate text.
        """
        reference = reference_of(request.model_name, request.model_version, self._model.names)
        check_writes(self._model)
        instead = "call loramux.v1.GenerationService.Generate with prompt_token_ids"
        check_readable(TEXT_INPUT, instead, self._model)
        if not reference:
            return None
        key = parsed.routing_key or secrets.token_hex(8)
        with self._registry.lease(reference, key=key, field="model_name") as (record, _):
            check_continues(record, "model_name")
            return record

    def _named(self, name: str, version: str) -> AdapterRecord | None:
        """Return the version that `name` and `version` stand for; None for the base model.

        Raises:
            NotFoundError: There is none.
            InvalidArgumentError: The name is invalid.
        """
        reference = reference_of(name, version, self._model.names, prefix="")
        return self._registry.get(reference) if reference else None


def _one(
    parsed: ParsedRequest, index: int, record: AdapterRecord | None
) -> generation_pb2.GenerateRequest:
    """Return the generation request for one of the texts."""
    return generation_pb2.GenerateRequest(
        adapter=f"{record}@{record.digest}" if record else "",
        prompt=parsed.texts[index],
        sampling=parsed.samplings[index],
        add_special_tokens=parsed.adds_tokens,
        parse_special_tokens=parsed.parses_tokens,
        decoder_prompt=parsed.decoder_prompt,
        priority=parsed.priority,
        cache_salt=parsed.cache_salt,
        truncate_prompt_tokens=parsed.max_prompt_tokens,
    )


@contextmanager
def _renaming(parsed: ParsedRequest, index: int) -> Iterator[None]:
    """Make errors of the block name the fields of the original request."""
    try:
        yield
    except LoramuxError as error:
        raise parsed.renamed(error, index) from None


async def _all(calls: Iterable[Coroutine[Any, Any, Result]]) -> list[Result]:
    """Run `calls` concurrently and return their results; if one fails, the others are cancelled."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(call) for call in calls]
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]


def _is_strict(context: Context) -> bool:
    """Return whether an error is to end the stream."""
    return any(
        key == _STRICT_KEY and value == "true" for key, value in context.invocation_metadata() or ()
    )
