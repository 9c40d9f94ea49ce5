"""GenerationService: a request -> the engine's events -> its answer."""

from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from loramux.v1 import generation_pb2
from loramux_server.access.caller import caller
from loramux_server.access.quotas import Quotas
from loramux_server.engine_link.client import EngineClient
from loramux_server.observe.call_record import note
from loramux_server.services.adapter_fields import check_adapters
from loramux_server.services.calls import Calls
from loramux_server.services.deadline import Deadline
from loramux_server.services.gen_ai import operation_of
from loramux_server.services.generation.bad_words import bad_words_of
from loramux_server.services.generation.beam_fields import check_beams
from loramux_server.services.generation.call import GenerationCall
from loramux_server.services.generation.completion_limits import CompletionLimits
from loramux_server.services.generation.conversation import conversation_of
from loramux_server.services.generation.decoder_prompt import (
    check_decoder_prompt,
    decoder_prompt_tokens,
)
from loramux_server.services.generation.images import ImageLimits, Prompt, check_images
from loramux_server.services.generation.options import options_of
from loramux_server.services.generation.output import join
from loramux_server.services.generation.prediction import check_predicted, check_prediction
from loramux_server.services.generation.prepared import AdmittedRequest, Prepared
from loramux_server.services.generation.running_calls import RunningCalls
from loramux_server.services.generation.truncation import check_truncation, max_prompt_tokens
from loramux_server.services.limits import check_fields, check_own_tokens, check_tokens
from loramux_server.services.prompts import Prompts
from loramux_server.services.request_spans import RequestSpans
from loramux_server.services.resolved_adapters import ResolvedAdapters, resolve_adapters
from loramux_server.services.tasks import check_writes
from loramux_server.statuses import Statuses
from loramux_server.store.package_settings import NONE, PackageSettings, PackageSettingsCache
from loramux_server.store.registry import Registry
from loramux_server.transport.rpc import Context
from loramux_server.waiting_room.place import Place
from loramux_server.waiting_room.room import WaitingRoom
from loramux_server.wire.model_info import ModelInfo

UNARY_INTERVAL = 16
"""Tokens per delivery from the engine when the answer is sent as a whole."""


class GenerationService:
    """Implements `loramux.v1.GenerationService`."""

    descriptor = generation_pb2.DESCRIPTOR.services_by_name["GenerationService"]

    def __init__(
        self,
        *,
        engine: EngineClient,
        registry: Registry,
        model: ModelInfo,
        calls: Calls,
        statuses: Statuses,
        prompts: Prompts,
        quotas: Quotas,
        room: WaitingRoom,
        package_settings: PackageSettingsCache,
        spans: RequestSpans,
        images: ImageLimits,
        completions: CompletionLimits,
        default_timeout: float,
        stream_interval: int = 1,
    ) -> None:
        self._registry = registry
        self._model = model
        self._calls = calls
        self._statuses = statuses
        self._quotas = quotas
        self._room = room
        self._images = images
        self._completions = completions
        self._default_timeout = default_timeout
        self._stream_interval = stream_interval
        self._prompts = prompts
        self._package_settings = package_settings
        self._running = RunningCalls(
            engine=engine,
            room=room,
            spans=spans,
            model_name=model.name,
            stream_interval=stream_interval,
        )

    async def Generate(
        self, request: generation_pb2.GenerateRequest, context: Context
    ) -> generation_pb2.GenerateResponse:
        """Answer once every completion has finished."""
        responses = [chunk async for chunk in self._chunks(request, context, UNARY_INTERVAL)]
        chunks: dict[int, list[generation_pb2.Completion]] = {}
        for response in responses:
            chunks.setdefault(response.delta.index, []).append(response.delta)
        first, last = responses[0], responses[-1]
        return generation_pb2.GenerateResponse(
            request_id=first.request_id,
            completions=[join(found) for _, found in sorted(chunks.items())],
            adapter=first.adapter if first.HasField("adapter") else None,
            adapters=first.adapters,
            usage=last.usage,
            timing=last.timing,
            sampling=first.sampling,
            prompt_logprobs=first.prompt_logprobs,
        )

    def StreamGenerate(
        self, request: generation_pb2.GenerateRequest, context: Context
    ) -> AsyncGenerator[generation_pb2.StreamGenerateResponse, None]:
        """Stream the answer in chunks."""
        return self._chunks(request, context, self._stream_interval)

    async def _chunks(
        self, request: generation_pb2.GenerateRequest, context: Context, interval: int
    ) -> AsyncGenerator[generation_pb2.StreamGenerateResponse, None]:
        """Yield the answer, about `interval` tokens per chunk."""
        deadline = Deadline.of(context, self._default_timeout)
        async with self._call(request, deadline) as call:
            if beams := call.options.beams:
                with self._running.search(call, beams, deadline) as search:
                    for whole in await search.responses():
                        yield whole
                return
            with self._running.completions(call, deadline, interval) as running:
                while running.num_open:
                    for index, tokens in (await running.take()).items():
                        if response := running.push(index, tokens):
                            yield response

    @asynccontextmanager
    async def _call(
        self, request: generation_pb2.GenerateRequest, deadline: Deadline
    ) -> AsyncIterator[GenerationCall]:
        """Check and tokenize `request`, and hold its resources during the block."""
        most = self._model.output_length
        if request.sampling.HasField("max_tokens"):
            most = request.sampling.max_tokens
        tenant = caller().tenant
        with self._calls.observed() as observer:
            async with self.admitted(request, most, deadline) as admitted:
                adapters, prepared = admitted.adapters, admitted.prepared
                options = options_of(
                    request, prepared, model=self._model, adapters=adapters,
                    defaults=admitted.defaults,
                )  # fmt: skip
                self._completions.check_copies(len(options.samplings), prepared)
                num_prompt, form = prepared.num_prompt, options.form
                with self._quotas.tokens(tenant, num_prompt + options.num_expected) as reserved:
                    observer.resolved(adapters.label, num_prompt, form.kind if form else None)
                    yield GenerationCall(
                        request_id=admitted.request_id,
                        tenant=tenant,
                        cache_salt=request.cache_salt,
                        operation=operation_of(request),
                        adapters=adapters,
                        prepared=prepared,
                        options=options,
                        observer=observer,
                        place=admitted.place,
                        reserved=reserved,
                    )

    @asynccontextmanager
    async def admitted(
        self, request: generation_pb2.GenerateRequest, most: int, deadline: Deadline
    ) -> AsyncIterator[AdmittedRequest]:
        """Check `request`, resolve its adapters and build its prompt; hold them during the block.

        Args:
            request: The request.
            most: Maximum tokens of a completion.
            deadline: When the call must end.

        Raises:
            LoramuxError: A field is invalid, an adapter is missing, or the waiting room is full.
        """
        with (
            self._calls.placed(request, most, deadline, request.priority) as place,
            self._registered(request) as request_id,
            resolve_adapters(request, self._registry, self._statuses) as adapters,
        ):
            if adapters.source:
                note(digest=adapters.source.digest)
            settings = (
                await self._package_settings.of(adapters.leading) if adapters.leading else NONE
            )
            prepared = await self._prepared(request, adapters, settings, place, deadline)
            yield AdmittedRequest(request_id, adapters, prepared, settings.generation, place)

    async def _prepared(
        self,
        request: generation_pb2.GenerateRequest,
        adapters: ResolvedAdapters,
        settings: PackageSettings,
        place: Place,
        deadline: Deadline,
    ) -> Prepared:
        """Return what template and tokenizer make of `request`; `settings` are its adapter's.

        Its images' bytes are charged to `place`.
        """
        conversation = await conversation_of(request, self._model)
        num_virtual = adapters.source.virtual_tokens if adapters.source else 0
        most = max_prompt_tokens(request, self._model, num_virtual)
        async with deadline.ending():
            tokens = await self._prompts.tokens(request, conversation, settings, most)
        tool_use = await self._prompts.tool_use(request, conversation, settings)
        thinking = await self._prompts.thinking(request, tokens, settings)
        predicted = await self._prompts.predicted(request, settings)
        vocab_size = adapters.vocab_size or self._model.vocab_size
        check_own_tokens(request, tokens, vocab_size)
        check_predicted(request, predicted, self._model, vocab_size)
        tokenizer = await self._prompts.tokenizer(settings)
        end_token = await self._prompts.end_token(settings)
        given = await self._prompts.decoder_prompt(request, settings)
        decoder_prompt = decoder_prompt_tokens(
            request, given, settings.generation, self._model, vocab_size
        )
        prompt = Prompt(tokens, [])
        if conversation.num_images:
            prompt = await self._with_images(request, tokens, place, deadline)
            check_tokens("messages", prompt.tokens, vocab_size)
        return Prepared(
            prompt=[*prompt.tokens, *decoder_prompt],
            num_source=len(prompt.tokens) if decoder_prompt else 0,
            images=prompt.images,
            predicted=predicted,
            bad_words=await bad_words_of(request, self._prompts.texts, settings),
            tokenizer=tokenizer,
            tool_use=tool_use,
            thinking=thinking,
            end_token=end_token,
        )

    async def _with_images(
        self,
        request: generation_pb2.GenerateRequest,
        tokens: list[int],
        place: Place,
        deadline: Deadline,
    ) -> Prompt:
        """Return the prompt of `request`, tokenized by the template to `tokens`, with its images.

        Meanwhile, `tokens` are reserved from the tenant's quota. The images' bytes are charged to
        `place`.
        """
        async with deadline.ending():
            with self._quotas.tokens(caller().tenant, len(tokens)):
                return await self._prompts.with_images(
                    request, tokens, lambda num_bytes: self._room.hold(place, num_bytes)
                )

    @contextmanager
    def _registered(self, request: generation_pb2.GenerateRequest) -> Iterator[str]:
        """Check all fields, and register the request's id during the block."""
        check_writes(self._model)
        check_fields(request, self._model)
        self._completions.check(request.sampling)
        check_images(request, self._model, self._images)
        check_prediction(request, self._model)
        check_decoder_prompt(request, self._model)
        check_truncation(request)
        check_beams(request)
        check_adapters(request)
        with self._calls.live(request.request_id) as request_id:
            yield request_id
