"""TokenizationService: tokenization and detokenization without running the model."""

import asyncio
from contextlib import ExitStack
from functools import partial

from loramux.v1 import tokenization_pb2
from loramux_server.field_errors import wrong
from loramux_server.services.calls import Calls
from loramux_server.services.deadline import Deadline
from loramux_server.services.generation.service import GenerationService
from loramux_server.services.limits import check_tokens
from loramux_server.services.prompts import Prompts
from loramux_server.store.package_settings import NONE, PackageSettingsCache
from loramux_server.store.registry import Registry
from loramux_server.text.tokenizer import OFF_LOOP
from loramux_server.transport.rpc import Context
from loramux_server.wire.model_info import ModelInfo


class TokenizationService:
    """Implements `loramux.v1.TokenizationService`.

    A prompt is built and checked exactly as for `Generate`. A call takes a place in the waiting
    room while it runs and counts as a request of its tenant, but its tokens do not count.
    """

    descriptor = tokenization_pb2.DESCRIPTOR.services_by_name["TokenizationService"]

    def __init__(
        self,
        *,
        generation: GenerationService,
        calls: Calls,
        prompts: Prompts,
        package_settings: PackageSettingsCache,
        registry: Registry,
        model: ModelInfo,
        default_timeout: float,
    ) -> None:
        self._generation = generation
        self._calls = calls
        self._prompts = prompts
        self._package_settings = package_settings
        self._registry = registry
        self._model = model
        self._default_timeout = default_timeout

    async def Tokenize(
        self, request: tokenization_pb2.TokenizeRequest, context: Context
    ) -> tokenization_pb2.TokenizeResponse:
        """Return the tokens of a prompt."""
        deadline = Deadline.of(context, self._default_timeout)
        async with self._generation.admitted(request.request, 0, deadline) as admitted:
            prepared = admitted.prepared
            tokens = prepared.prompt[: prepared.num_prompt]
            pieces: list[bytes] = []
            if request.return_pieces and prepared.tokenizer:
                bytes_of = prepared.tokenizer.bytes_of
                pieces = await asyncio.to_thread(lambda: [bytes_of(token) for token in tokens])
            return tokenization_pb2.TokenizeResponse(
                token_ids=tokens,
                pieces=pieces,
                context_length=self._model.context_length,
                adapter=admitted.adapters.identity,
            )

    async def Detokenize(
        self, request: tokenization_pb2.DetokenizeRequest, context: Context
    ) -> tokenization_pb2.DetokenizeResponse:
        """Return the text of tokens."""
        tokens, most = list(request.token_ids), self._model.context_length
        if len(tokens) > most:
            raise wrong(
                "token_ids", f"has {len(tokens)} tokens; expected at most {most}, the context"
            )
        deadline = Deadline.of(context, self._default_timeout)
        with ExitStack() as held:
            held.enter_context(self._calls.placed(request, 0, deadline))
            held.enter_context(self._calls.live(""))
            settings, vocab_size = NONE, self._model.vocab_size
            if request.adapter:
                record, source = held.enter_context(self._registry.lease(request.adapter))
                settings = await self._package_settings.of(source)
                vocab_size = record.vocab_size or vocab_size
            check_tokens("token_ids", tokens, vocab_size)
            tokenizer = await self._prompts.tokenizer(settings)
            if tokenizer is None:
                raise wrong("token_ids", "cannot be detokenized: the base model has no tokenizer")
            make = partial(tokenizer.text_of, tokens, skip_special=request.skip_special_tokens)
            text = await asyncio.to_thread(make) if len(tokens) > OFF_LOOP else make()
        return tokenization_pb2.DetokenizeResponse(text=text)
