"""GenerationService: a request -> the engine's events -> its answer."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from loramux.errors import AlreadyExistsError, DeadlineExceededError, InvalidArgumentError
from loramux.v1 import generation_pb2
from loramux_server.engine.messages import AdapterSource, ModelInfo, Sampling, Started, Token
from loramux_server.engine_client import EngineClient, Event, Mailbox
from loramux_server.metrics import Metrics
from loramux_server.rpc import Context
from loramux_server.services.limits import (
    TextOptions,
    check_fields,
    check_tokens,
    samplings,
    text_options,
)
from loramux_server.services.observer import Observer, outcome_of
from loramux_server.services.output import Output, join
from loramux_server.store.registry import Registry
from loramux_server.tokenizer import TextTokenizer

OFF_LOOP = 4096
"""Characters from which a prompt is tokenized in a thread."""


@dataclass(frozen=True, slots=True)
class _Call:
    """A checked request, on its way."""

    request_id: str
    prompt: list[int]
    adapter: AdapterSource | None
    identity: generation_pb2.AdapterIdentity | None
    samplings: list[Sampling]
    text: TextOptions
    observer: Observer


class GenerationService:
    """Implements `loramux.v1.GenerationService`."""

    def __init__(
        self,
        *,
        engine: EngineClient,
        registry: Registry,
        model: ModelInfo,
        metrics: Metrics,
        default_timeout: float,
    ) -> None:
        self._engine = engine
        self._registry = registry
        self._model = model
        self._metrics = metrics
        self._default_timeout = default_timeout
        self._tokenizer = TextTokenizer(model.tokenizer_json) if model.tokenizer_json else None
        self._live: set[str] = set()

    async def Generate(
        self, request: generation_pb2.GenerateRequest, context: Context
    ) -> generation_pb2.GenerateResponse:
        """Answer when every completion is finished."""
        deadline = self._deadline(context)
        with self._observed() as observer:
            pieces: dict[int, list[generation_pb2.Completion]] = {}
            with self._admitted(request) as request_id:
                tokens = await self._tokenize(request)
                with self._resolved(request, request_id, tokens, observer) as call:
                    async for piece in self._run(call, deadline):
                        pieces.setdefault(piece.index, []).append(piece)
            completions = [join(found) for _, found in sorted(pieces.items())]
            return generation_pb2.GenerateResponse(
                request_id=call.request_id,
                completions=completions,
                adapter=call.identity,
                usage=_usage(call, sum(len(c.token_ids) for c in completions)),
                timing=observer.timing(),
            )

    async def StreamGenerate(
        self, request: generation_pb2.GenerateRequest, context: Context
    ) -> AsyncIterator[generation_pb2.StreamGenerateResponse]:
        """Answer piece by piece."""
        deadline = self._deadline(context)
        with self._observed() as observer, self._admitted(request) as request_id:
            tokens = await self._tokenize(request)
            with self._resolved(request, request_id, tokens, observer) as call:
                async for response in self._stream(call, deadline):
                    yield response

    async def _stream(
        self, call: _Call, deadline: "_Deadline"
    ) -> AsyncIterator[generation_pb2.StreamGenerateResponse]:
        is_first = True
        num_tokens = 0
        num_open = len(call.samplings)
        async for piece in self._run(call, deadline):
            response = generation_pb2.StreamGenerateResponse(delta=piece)
            if is_first:
                response.request_id = call.request_id
                if call.identity:
                    response.adapter.CopyFrom(call.identity)
                is_first = False
            num_tokens += len(piece.token_ids)
            num_open -= bool(piece.finish_reason)
            if not num_open:
                response.usage.CopyFrom(_usage(call, num_tokens))
                response.timing.CopyFrom(call.observer.timing())
            yield response

    async def _run(
        self, call: _Call, deadline: "_Deadline"
    ) -> AsyncIterator[generation_pb2.Completion]:
        """Yield the pieces of all completions of `call` until each has ended."""
        mailbox = Mailbox()
        outputs = [self._output(call, index) for index in range(len(call.samplings))]
        ids: list[int] = []
        try:
            for index, sampling in enumerate(call.samplings):
                ids.append(self._engine.submit(mailbox, index, call.prompt, call.adapter, sampling))
            while not all(output.is_finished for output in outputs):
                for index, tokens in _by_index(await deadline.take(mailbox), call.observer):
                    if outputs[index].is_finished:
                        continue
                    piece = outputs[index].push(tokens)
                    call.observer.tokens(index, len(piece.token_ids))
                    if outputs[index].is_finished:
                        self._engine.cancel(ids[index])
                    yield piece
        finally:
            for request_id in ids:
                self._engine.cancel(request_id)

    def _output(self, call: _Call, index: int) -> Output:
        decoder = None
        if self._tokenizer:
            decoder = self._tokenizer.decoder(call.prompt, skip_special=call.text.skip_special)
        return Output(index, decoder, call.text, call.samplings[index].min_tokens)

    @contextmanager
    def _observed(self) -> Iterator[Observer]:
        observer = Observer(self._metrics)
        try:
            yield observer
        except BaseException as error:
            observer.ended(outcome_of(error))
            raise
        observer.ended("ok")

    @contextmanager
    def _admitted(self, request: generation_pb2.GenerateRequest) -> Iterator[str]:
        """Check the fields and keep the request's id for as long as the block runs."""
        check_fields(request, self._model)
        request_id = request.request_id or secrets.token_hex(8)
        if request_id in self._live:
            raise AlreadyExistsError(
                f"request_id {request_id!r} is that of a request still running",
                reason="REQUEST_EXISTS",
                field="request_id",
            )
        self._live.add(request_id)
        try:
            yield request_id
        finally:
            self._live.discard(request_id)

    async def _tokenize(self, request: generation_pb2.GenerateRequest) -> list[int]:
        if not request.prompt:
            return list(request.prompt_token_ids)
        assert self._tokenizer is not None

        def encode() -> list[int]:
            assert self._tokenizer is not None
            return self._tokenizer.encode(
                request.prompt,
                parse_special=request.parse_special_tokens,
                add_special=(
                    request.add_special_tokens if request.HasField("add_special_tokens") else True
                ),
            )

        is_short = len(request.prompt) < OFF_LOOP
        tokens = encode() if is_short else await asyncio.to_thread(encode)
        if not tokens:
            raise InvalidArgumentError(
                "prompt has no tokens: the tokenizer makes none of this text",
                reason="INVALID_FIELD",
                field="prompt",
            )
        # A tokenizer may know more tokens than the model has.
        check_tokens("prompt", tokens, self._model)
        return tokens

    @contextmanager
    def _resolved(
        self,
        request: generation_pb2.GenerateRequest,
        request_id: str,
        tokens: list[int],
        observer: Observer,
    ) -> Iterator[_Call]:
        """Resolve the adapter once and keep that version for as long as the block runs."""
        chosen = samplings(request.sampling, len(tokens), self._model)
        text = text_options(request.sampling)
        if not request.adapter:
            observer.resolved("", len(tokens))
            yield _Call(request_id, tokens, None, None, chosen, text, observer)
            return
        with self._registry.lease(request.adapter) as (record, source):
            observer.resolved(record.name, len(tokens))
            identity = generation_pb2.AdapterIdentity(name=record.name, digest=record.digest)
            yield _Call(request_id, tokens, source, identity, chosen, text, observer)

    def _deadline(self, context: Context) -> "_Deadline":
        remaining = context.time_remaining()
        return _Deadline(
            self._default_timeout if remaining is None else min(remaining, MAX_TIMEOUT)
        )


MAX_TIMEOUT = 3600.0


class _Deadline:
    """The moment by which a request has to be finished.

    Only the wait for the engine is cut short. Between the pieces of a stream the task is gRPC's,
    and a stream whose task is cancelled there never ends for its reader.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._when = asyncio.get_running_loop().time() + seconds

    async def take(self, mailbox: Mailbox) -> list[Event]:
        """Return what arrives in `mailbox`.

        Raises:
            DeadlineExceededError: It did not arrive in time.
            LoramuxError: See `Mailbox.take`.
        """
        if asyncio.get_running_loop().time() < self._when:
            with suppress(TimeoutError):
                async with asyncio.timeout_at(self._when):
                    return await mailbox.take()
        raise DeadlineExceededError(
            f"the request did not finish within {self._seconds:.3g} s", reason="DEADLINE_EXCEEDED"
        )


def _by_index(events: list[Event], observer: Observer) -> Iterator[tuple[int, list[Token]]]:
    """Yield the tokens of each completion together, in the order in which they came first."""
    tokens: dict[int, list[Token]] = {}
    for event in events:
        if isinstance(event.what, Started):
            observer.started(event.what.queue_seconds)
        else:
            tokens.setdefault(event.index, []).append(event.what)
    yield from tokens.items()


def _usage(call: _Call, num_tokens: int) -> generation_pb2.Usage:
    return generation_pb2.Usage(prompt_tokens=len(call.prompt), completion_tokens=num_tokens)
