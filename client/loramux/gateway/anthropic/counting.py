"""Counts the tokens of a prompt, without running the model."""

from dataclasses import dataclass

from starlette.types import Receive, Scope, Send

from loramux.gateway.answers import adapter_header
from loramux.gateway.backend import Backend
from loramux.gateway.caller import Caller
from loramux.gateway.refusal import json_response
from loramux.v1 import generation_pb2, tokenization_pb2


@dataclass(frozen=True, slots=True)
class Counting:
    """A request to count the tokens of a prompt."""

    backend: Backend
    caller: Caller
    request: generation_pb2.GenerateRequest
    """Its `max_tokens` is set to 1, so that any prompt fits for which at least one token can be
    generated. Changed in place, since a copy would duplicate its images."""
    seconds: float | None

    def __post_init__(self) -> None:
        self.request.sampling.max_tokens = 1

    async def whole(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with the count."""
        found = {"input_tokens": len((await self._tokenized()).token_ids)}
        await json_response(found, self.caller.returned)(scope, receive, send)

    async def room(self) -> int:
        """Return how many tokens the context leaves for a completion.

        Raises:
            LoramuxError: A call of the server failed.
        """
        response = await self._tokenized()
        room = response.context_length - len(response.token_ids)
        if response.HasField("adapter"):
            reference = adapter_header([response.adapter])
            room -= (await self.backend.adapter(reference, self.caller)).virtual_tokens
        return room

    async def _tokenized(self) -> tokenization_pb2.TokenizeResponse:
        return await self.backend.tokenize(self.request, self.caller, self.seconds)
