"""Counts the tokens of a prompt, by generating one token: the server reports usage with answers."""

from dataclasses import dataclass
from typing import Self

from starlette.types import Receive, Scope, Send

from loramux.gateway.answers import adapter_header
from loramux.gateway.backend import Backend
from loramux.gateway.caller import Caller
from loramux.gateway.refusal import json_response
from loramux.v1 import generation_pb2


@dataclass(frozen=True, slots=True)
class Counting:
    """What it takes to count the tokens of a prompt."""

    backend: Backend
    caller: Caller
    asked: generation_pb2.GenerateRequest
    """Asks for one token; afterwards the prompt is in the prefix cache."""
    seconds: float | None

    @classmethod
    def of(
        cls,
        backend: Backend,
        caller: Caller,
        asked: generation_pb2.GenerateRequest,
        seconds: float | None,
    ) -> Self:
        """Return what counts the prompt of `asked`, which is not changed."""
        shortened = generation_pb2.GenerateRequest()
        shortened.CopyFrom(asked)
        shortened.sampling.max_tokens = 1
        return cls(backend, caller, shortened, seconds)

    async def whole(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with the count."""
        response = await self._response()
        found = {"input_tokens": response.usage.prompt_tokens}
        await json_response(found, self.caller.returned)(scope, receive, send)

    async def taken(self) -> int:
        """Return how many tokens of the context the prompt and the adapter's virtual tokens take.

        Raises:
            LoramuxError: A call of the server failed.
        """
        response = await self._response()
        taken = response.usage.prompt_tokens
        for identity in response.adapters:
            adapter = await self.backend.adapter(adapter_header([identity]), self.caller)
            taken += adapter.virtual_tokens
        return taken

    async def _response(self) -> generation_pb2.GenerateResponse:
        return await self.backend.generate(self.asked, self.caller, self.seconds)
