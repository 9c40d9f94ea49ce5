"""GenerationService: a request -> the engine's events -> its answer."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from loramux.errors import AlreadyExistsError, DeadlineExceededError
from loramux.v1 import generation_pb2
from loramux_server.access.caller import caller
from loramux_server.access.quotas import Quotas, Reserved
from loramux_server.engine.messages import AdapterSource, ModelInfo, Sampling
from loramux_server.engine_client import EngineClient, Mailbox
from loramux_server.metrics import Metrics
from loramux_server.observe.call_record import note
from loramux_server.rpc import Context
from loramux_server.services.defaults import used, with_defaults
from loramux_server.services.descriptions import identity_of
from loramux_server.services.limits import (
    TextOptions,
    check_fields,
    check_own_tokens,
    samplings,
    text_options,
)
from loramux_server.services.observer import Observer, outcome_of
from loramux_server.services.output import Output, join
from loramux_server.services.prompts import Prompts
from loramux_server.statuses import Statuses
from loramux_server.store.instructions import NONE, Instruction, Instructions
from loramux_server.store.record import AdapterRecord
from loramux_server.store.registry import Registry
from loramux_server.tokenizer import TextTokenizer


@dataclass(frozen=True, slots=True)
class _Call:
    """A checked request, on its way."""

    request_id: str
    tenant: str
    """Whose request it is, which need not be whose adapter it is."""
    prompt: list[int]
    adapter: AdapterSource | None
    identity: generation_pb2.AdapterIdentity | None
    samplings: list[Sampling]
    used: generation_pb2.SamplingParams
    text: TextOptions
    observer: Observer
    reserved: Reserved
    """Tokens of its tenant's quota."""


class GenerationService:
    """Implements `loramux.v1.GenerationService`."""

    def __init__(
        self,
        *,
        engine: EngineClient,
        registry: Registry,
        model: ModelInfo,
        metrics: Metrics,
        statuses: Statuses,
        prompts: Prompts,
        quotas: Quotas,
        default_timeout: float,
    ) -> None:
        self._engine = engine
        self._registry = registry
        self._model = model
        self._metrics = metrics
        self._statuses = statuses
        self._quotas = quotas
        self._default_timeout = default_timeout
        self._prompts = prompts
        self._instructions = Instructions()
        self._live: set[tuple[str, str]] = set()
        """Tenant and id of each request under way."""

    async def Generate(
        self, request: generation_pb2.GenerateRequest, context: Context
    ) -> generation_pb2.GenerateResponse:
        """Answer when every completion is finished."""
        responses = [response async for response in self.StreamGenerate(request, context)]
        pieces: dict[int, list[generation_pb2.Completion]] = {}
        for response in responses:
            pieces.setdefault(response.delta.index, []).append(response.delta)
        first, last = responses[0], responses[-1]
        return generation_pb2.GenerateResponse(
            request_id=first.request_id,
            completions=[join(found) for _, found in sorted(pieces.items())],
            adapter=first.adapter if first.HasField("adapter") else None,
            usage=last.usage,
            timing=last.timing,
            sampling=first.sampling,
        )

    async def StreamGenerate(
        self, request: generation_pb2.GenerateRequest, context: Context
    ) -> AsyncIterator[generation_pb2.StreamGenerateResponse]:
        """Answer piece by piece."""
        deadline = self._deadline(context)
        with (
            self._observed() as observer,
            self._admitted(request) as request_id,
            self._resolved(request) as adapter,
        ):
            told = await self._instructions.of(adapter[1]) if adapter else NONE
            tokens = await self._prompts.tokens(request, told)
            # A tokenizer may know more tokens than the model has.
            own_size = adapter[0].vocab_size if adapter else 0
            check_own_tokens(request, tokens, own_size or self._model.vocab_size)
            tokenizer = await self._prompts.tokenizer(told)
            reserving = self._reserved(request, request_id, adapter, told, tokens, observer)
            with reserving as call:
                async for response in self._run(call, tokenizer, deadline):
                    yield response

    async def _run(
        self, call: _Call, tokenizer: TextTokenizer | None, deadline: "_Deadline"
    ) -> AsyncIterator[generation_pb2.StreamGenerateResponse]:
        """Yield the pieces of all completions of `call` until each has ended."""
        mailbox = Mailbox(call.observer.started)
        outputs = [_output(call, tokenizer, index) for index in range(len(call.samplings))]
        num_open = len(outputs)
        response = generation_pb2.StreamGenerateResponse(
            request_id=call.request_id, adapter=call.identity, sampling=call.used
        )
        submitted = self._submitted(call, mailbox, deadline)
        with _accounted(call, outputs), submitted as ids, deadline.over(mailbox):
            while num_open:
                for index, tokens in (await mailbox.take()).items():
                    output = outputs[index]
                    if output.is_finished:
                        continue
                    output.push(tokens, response.delta)
                    call.observer.tokens(index, len(response.delta.token_ids))
                    if output.is_finished:
                        num_open -= 1
                        self._engine.finish(ids[index])
                    if not num_open:
                        response.usage.prompt_tokens = len(call.prompt)
                        response.usage.completion_tokens = sum(out.num_tokens for out in outputs)
                        response.timing.CopyFrom(call.observer.timing())
                    yield response
                    response = generation_pb2.StreamGenerateResponse()

    @contextmanager
    def _submitted(
        self, call: _Call, mailbox: Mailbox, deadline: "_Deadline"
    ) -> Iterator[list[int]]:
        """Start the completions of `call`, and end for the engine what the block leaves open."""
        ids: list[int] = []
        try:
            for index, sampling in enumerate(call.samplings):
                ids.append(
                    self._engine.submit(
                        mailbox,
                        index,
                        call.prompt,
                        call.adapter,
                        sampling,
                        call.tenant,
                        deadline.remaining,
                    )
                )
            yield ids
        finally:
            for request_id in ids:
                self._engine.cancel(request_id)

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
        tenant = caller().tenant
        key = (tenant, request_id)
        if key in self._live:
            raise AlreadyExistsError(
                f"request_id {request_id!r} is that of a request still running",
                reason="REQUEST_EXISTS",
                field="request_id",
            )
        self._live.add(key)
        note(generation_id=request_id)
        try:
            with self._quotas.request(tenant):
                yield request_id
        finally:
            self._live.discard(key)

    @contextmanager
    def _resolved(
        self, request: generation_pb2.GenerateRequest
    ) -> Iterator[tuple[AdapterRecord, AdapterSource] | None]:
        """Resolve the adapter once and keep that version for as long as the block runs."""
        if not request.adapter:
            yield None
            return
        key = request.routing_key or secrets.token_hex(8)
        with (
            self._registry.lease(request.adapter, key=key) as (record, source),
            self._statuses.used(record.digest, record.tenant),
        ):
            note(digest=record.digest)
            yield record, source

    @contextmanager
    def _reserved(
        self,
        request: generation_pb2.GenerateRequest,
        request_id: str,
        adapter: tuple[AdapterRecord, AdapterSource] | None,
        told: Instruction,
        tokens: list[int],
        observer: Observer,
    ) -> Iterator[_Call]:
        """Fill in what `request` leaves to its adapter, and reserve what it may use at most."""
        params = with_defaults(request.sampling, told.generation, self._model)
        chosen = samplings(params, len(tokens), self._model, told.generation)
        tenant = caller().tenant
        most = len(tokens) + sum(sampling.max_tokens for sampling in chosen)
        record, source = adapter or (None, None)
        with self._quotas.tokens(tenant, most) as reserved:
            observer.resolved(record.full_name if record else "", len(tokens))
            yield _Call(
                request_id,
                tenant,
                tokens,
                source,
                identity_of(record) if record else None,
                chosen,
                used(params, chosen),
                text_options(params),
                observer,
                reserved,
            )

    def _deadline(self, context: Context) -> "_Deadline":
        remaining = context.time_remaining()
        return _Deadline(
            self._default_timeout if remaining is None else min(remaining, MAX_TIMEOUT)
        )


def _output(call: _Call, tokenizer: TextTokenizer | None, index: int) -> Output:
    decoder = None
    if tokenizer:
        decoder = tokenizer.decoder(call.prompt, skip_special=call.text.skip_special)
    return Output(index, decoder, call.text, call.samplings[index].min_tokens)


@contextmanager
def _accounted(call: _Call, outputs: list[Output]) -> Iterator[None]:
    """Note in the end what of the quota was used; a request that got no token used nothing."""
    try:
        yield
    finally:
        num_made = sum(output.num_tokens for output in outputs)
        call.reserved.num_used = len(call.prompt) + num_made if num_made else 0


MAX_TIMEOUT = 3600.0


class _Deadline:
    """The moment by which a request has to be finished.

    Only the wait for the engine is cut short. Between the pieces of a stream the task is gRPC's,
    and a stream whose task is cancelled there never ends for its reader.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._when = asyncio.get_running_loop().time() + seconds

    @property
    def remaining(self) -> float:
        """Seconds that are left."""
        return max(0.0, self._when - asyncio.get_running_loop().time())

    @contextmanager
    def over(self, mailbox: Mailbox) -> Iterator[None]:
        """Let `mailbox` fail with DeadlineExceededError when it is time, unless the block ends."""
        error = DeadlineExceededError(
            f"the request did not finish within {self._seconds:.3g} s", reason="DEADLINE_EXCEEDED"
        )
        timer = asyncio.get_running_loop().call_at(self._when, mailbox.fail, error)
        try:
            yield
        finally:
            timer.cancel()
