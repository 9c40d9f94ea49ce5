"""GenerationService: a request -> the engine's events -> its answer."""

from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager

from loramux.v1 import generation_pb2
from loramux_server.access.caller import caller
from loramux_server.access.quotas import Quotas
from loramux_server.engine_link.client import EngineClient
from loramux_server.forms.form import FormKind
from loramux_server.observe.call_record import note
from loramux_server.reasoning.thinking import Thinking
from loramux_server.services.adapter_fields import check_adapters
from loramux_server.services.calls import Calls
from loramux_server.services.choice import Choice, chosen
from loramux_server.services.deadline import Deadline
from loramux_server.services.gen_ai import operation_of
from loramux_server.services.generation.beam_fields import (
    beams_of,
    check_beams,
    searched,
    searching_defaults,
)
from loramux_server.services.generation.call import GenerationCall
from loramux_server.services.generation.conversation import conversation
from loramux_server.services.generation.decoder_prompt import begun, check_decoder_prompt
from loramux_server.services.generation.defaults import used, with_defaults
from loramux_server.services.generation.forms import form_of
from loramux_server.services.generation.images import ImageLimits, Prompt, check_images
from loramux_server.services.generation.output import join
from loramux_server.services.generation.prediction import check_predicted, check_prediction
from loramux_server.services.generation.prompt_logprobs import check_told
from loramux_server.services.generation.running_calls import RunningCalls
from loramux_server.services.generation.sampling import samplings, text_options
from loramux_server.services.generation.tool_use import ToolUse
from loramux_server.services.limits import check_fields, check_own_tokens, check_tokens
from loramux_server.services.observer import Observer
from loramux_server.services.prompts import Prompts
from loramux_server.services.request_spans import RequestSpans
from loramux_server.services.tasks import check_writes
from loramux_server.statuses import Statuses
from loramux_server.store.instructions import NONE, Instruction, Instructions
from loramux_server.store.registry import Registry
from loramux_server.transport.rpc import Context
from loramux_server.waiting_room.place import Place
from loramux_server.waiting_room.room import WaitingRoom
from loramux_server.wire.model_info import ModelInfo

WHOLE_INTERVAL = 16
"""Tokens that are taken at once for who gets them all at the end."""


class GenerationService:
    """Implements `loramux.v1.GenerationService`."""

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
        instructions: Instructions,
        spans: RequestSpans,
        images: ImageLimits,
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
        self._default_timeout = default_timeout
        self._stream_interval = stream_interval
        self._prompts = prompts
        self._instructions = instructions
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
        """Answer when every completion is finished."""
        responses = [piece async for piece in self._pieces(request, context, WHOLE_INTERVAL)]
        pieces: dict[int, list[generation_pb2.Completion]] = {}
        for response in responses:
            pieces.setdefault(response.delta.index, []).append(response.delta)
        first, last = responses[0], responses[-1]
        return generation_pb2.GenerateResponse(
            request_id=first.request_id,
            completions=[join(found) for _, found in sorted(pieces.items())],
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
        """Answer piece by piece."""
        return self._pieces(request, context, self._stream_interval)

    async def _pieces(
        self, request: generation_pb2.GenerateRequest, context: Context, interval: int
    ) -> AsyncGenerator[generation_pb2.StreamGenerateResponse, None]:
        """Yield the answer, `interval` tokens at once where nothing ends before them."""
        deadline = Deadline.of(context, self._default_timeout)
        most = self._model.output_length
        if request.sampling.HasField("max_tokens"):
            most = request.sampling.max_tokens
        with (
            self._calls.observed() as observer,
            self._calls.placed(request, most, deadline) as place,
            self._admitted(request) as request_id,
            chosen(request, self._registry, self._statuses) as adapters,
        ):
            if adapters.source:
                note(digest=adapters.source.digest)
            talk = await conversation(request, self._model)
            told = await self._instructions.of(adapters.leading) if adapters.leading else NONE
            async with deadline.ending():
                tokens = await self._prompts.tokens(request, talk, told)
            tool_use = await self._prompts.tool_use(request, talk, told)
            thinking = await self._prompts.thinking(request, tokens, told)
            predicted = await self._prompts.predicted(request, told)
            vocab_size = adapters.vocab_size or self._model.vocab_size
            check_own_tokens(request, tokens, vocab_size)
            check_predicted(request, predicted, self._model, vocab_size)
            tokenizer = await self._prompts.tokenizer(told)
            end_token = await self._prompts.end_token(told)
            prompt = Prompt(tokens, [], await self._begun(request, told, vocab_size))
            if talk.num_images:
                prompt = await self._with_images(request, tokens, place, deadline)
                check_tokens("messages", prompt.tokens, vocab_size)
            reserving = self._reserved(
                request, request_id, adapters, told, prompt, predicted, tool_use, thinking,
                end_token, observer, place,
            )  # fmt: skip
            with reserving as call:
                if call.beams:
                    with self._running.search(call, call.beams, tokenizer, deadline) as search:
                        for whole in await search.responses():
                            yield whole
                    return
                with self._running.completions(call, tokenizer, deadline, interval) as running:
                    while running.num_open:
                        for index, made in (await running.take()).items():
                            if response := running.push(index, made):
                                yield response

    async def _begun(
        self, request: generation_pb2.GenerateRequest, told: Instruction, vocab_size: int
    ) -> list[int]:
        """Return with which tokens the decoder begins, where it does not go on with the prompt."""
        asked = await self._prompts.decoder_prompt(request, told)
        return begun(request, asked, told.generation, self._model, vocab_size)

    async def _with_images(
        self,
        request: generation_pb2.GenerateRequest,
        tokens: list[int],
        place: Place,
        deadline: Deadline,
    ) -> Prompt:
        """Return the prompt of `request`, for which the template wrote `tokens`, with its images.

        Meanwhile at least those are kept of the tenant's quota. What the images take counts at
        `place`.
        """
        async with deadline.ending():
            with self._quotas.tokens(caller().tenant, len(tokens)):
                return await self._prompts.with_images(
                    request, tokens, lambda num_bytes: self._room.hold(place, num_bytes)
                )

    @contextmanager
    def _admitted(self, request: generation_pb2.GenerateRequest) -> Iterator[str]:
        """Check the fields and keep the request's id for as long as the block runs."""
        check_writes(self._model)
        check_fields(request, self._model)
        check_images(request, self._model, self._images)
        check_prediction(request, self._model)
        check_decoder_prompt(request, self._model)
        check_beams(request)
        check_adapters(request)
        with self._calls.live(request.request_id) as request_id:
            yield request_id

    @contextmanager
    def _reserved(
        self,
        request: generation_pb2.GenerateRequest,
        request_id: str,
        adapters: Choice,
        told: Instruction,
        prompt: Prompt,
        predicted: list[int],
        tool_use: ToolUse | None,
        thinking: Thinking | None,
        end_token: int | None,
        observer: Observer,
        place: Place,
    ) -> Iterator[GenerationCall]:
        """Fill in what `request` leaves to its adapter, and reserve what it may use at most."""
        form = tool_use.form(request, self._model) if tool_use else form_of(request.sampling)
        if form and thinking:
            # A grammar is all that there may be.
            if form.kind is FormKind.GRAMMAR or thinking.has_own_tokens:
                thinking = None
            else:
                form = thinking.before(form)
        defaults = searching_defaults(request.sampling, told.generation)
        params = searched(with_defaults(request.sampling, defaults, self._model, form, end_token))
        num_virtual = adapters.source.virtual_tokens if adapters.source else 0
        num_prompt, num_before = len(prompt.tokens), len(prompt.begun)
        if num_before and adapters.source and adapters.source.has_cache:
            # Keys and values stand before what is written, and embeddings before what is read.
            num_before, num_virtual = num_before + num_virtual, 0
        each = samplings(
            params,
            num_prompt,
            self._model,
            defaults,
            num_virtual=num_virtual,
            num_seen=prompt.num_image_tokens,
            num_begun=num_before,
            form=form,
        )
        check_told(params, num_prompt)
        beams = beams_of(params, each[0], self._model, adapters.vocab_size, len(prompt.begun))
        num_made = beams.most_tokens if beams else sum(sampling.max_tokens for sampling in each)
        tenant = caller().tenant
        with self._quotas.tokens(tenant, num_prompt + num_made) as reserved:
            observer.resolved(adapters.label, num_prompt, form.kind if form else None)
            yield GenerationCall(
                request_id,
                tenant,
                [*prompt.tokens, *prompt.begun],
                num_prompt if prompt.begun else 0,
                prompt.images,
                predicted,
                adapters,
                each,
                used(params, each),
                text_options(params),
                tool_use,
                thinking,
                observer,
                reserved,
                place,
                operation_of(request),
                frozenset() if end_token is None else frozenset([end_token]),
                beams,
            )
