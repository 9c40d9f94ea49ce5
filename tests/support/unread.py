"""A stream that is not read until a test says so."""

from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

import grpc

from loramux.v1.generation_pb2 import GenerateRequest, SamplingParams, StreamGenerateResponse
from tests.support.wire import STREAM_GENERATE

OPTIONS = [
    # Little room on the way, so that the server notices soon.
    ("grpc.http2.lookahead_bytes", 256),
    ("grpc.http2.bdp_probe", 0),
    # Connections with the same options are one, otherwise.
    ("grpc.use_local_subchannel_pool", 1),
]


class Unread:
    """A stream, on a connection of its own, of which one message was read.

    Leaving the `with` cancels it.
    """

    def __init__(self, target: str, request: GenerateRequest, timeout: float = 120.0) -> None:
        self.tokens: dict[int, list[int]] = {index: [] for index in range(request.sampling.n or 1)}
        self._exits = ExitStack()
        channel = self._exits.enter_context(grpc.insecure_channel(target, options=OPTIONS))
        streaming: Any = channel.unary_stream(
            STREAM_GENERATE,
            request_serializer=GenerateRequest.SerializeToString,
            response_deserializer=StreamGenerateResponse.FromString,
        )
        self._stream = streaming(request, timeout=timeout)
        self.first = next(self._stream)
        self._take(self.first)

    def read(self) -> None:
        """Read the rest."""
        for response in self._stream:
            self._take(response)

    def _take(self, response: StreamGenerateResponse) -> None:
        self.tokens[response.delta.index] += response.delta.token_ids

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._exits.close()


def held(target: str, max_tokens: int = 240, **fields: Any) -> Unread:
    """Return a greedy stream of so many tokens that does not end before it is read.

    What is told of each token takes so much room that the engine pauses after some fifty of them.
    """
    sampling = SamplingParams(
        temperature=0.0, max_tokens=max_tokens, ignore_eos=True, logprobs=20
    )  # fmt: skip
    return Unread(target, GenerateRequest(prompt="hello", sampling=sampling, **fields))
