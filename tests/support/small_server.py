"""A gRPC server in this process that answers like one of ours, and fails as it is told."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from loramux.v1 import generation_pb2, server_pb2

SERVICE = "loramux.v1.GenerationService"
_ASKED = ("Generate", "StreamGenerate")


class SmallServer:
    """Notes which adapters were asked for, and answers with one token, or a stream of two."""

    def __init__(self, credentials: grpc.ServerCredentials | None = None) -> None:
        """Listen on 127.0.0.1, in plaintext or with `credentials`."""
        self.asked: Counter[str] = Counter()
        """Calls by adapter, failed ones as well."""
        self.others = 0
        """Calls of other methods."""
        self.failure: Callable[[grpc.ServicerContext], None] | None = None
        """Ends each call before its answer."""
        self.gate = threading.Event()
        """While it is not set, streams wait after their first token."""
        self.gate.set()
        self._pool = ThreadPoolExecutor(32)
        self._health = health.HealthServicer()
        self._grpc = grpc.server(self._pool)
        self._grpc.add_generic_rpc_handlers((self,))  # type: ignore[arg-type]
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._grpc)
        address = "127.0.0.1:0"
        self.port = (
            self._grpc.add_secure_port(address, credentials)
            if credentials
            else self._grpc.add_insecure_port(address)
        )
        self.target = f"127.0.0.1:{self.port}"
        self.serves(True)
        self._grpc.start()

    def serves(self, does: bool) -> None:
        """Say from now on that requests are answered, or are not."""
        status = health_pb2.HealthCheckResponse.ServingStatus
        self._health.set(SERVICE, status.SERVING if does else status.NOT_SERVING)

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        service, _, method = details.method.removeprefix("/").rpartition("/")
        if not service.startswith("loramux"):
            return None
        if method == "StreamGenerate":
            return grpc.unary_stream_rpc_method_handler(self._stream)
        return grpc.unary_unary_rpc_method_handler(
            lambda request, context: self._answer(method, request, context)
        )

    def stop(self) -> None:
        stopped = self._grpc.stop(None)  # calls under way are cut off
        self.gate.set()
        stopped.wait()
        self._pool.shutdown()

    def _answer(self, method: str, request: bytes, context: grpc.ServicerContext) -> bytes:
        if method not in _ASKED:
            self.others += 1
            return server_pb2.GetServerInfoResponse(version="1").SerializeToString()
        self._begin(request, context)
        return generation_pb2.GenerateResponse().SerializeToString()

    def _stream(self, request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        self._begin(request, context)
        for token in (1, 2):
            delta = generation_pb2.Completion(token_ids=[token])
            yield generation_pb2.StreamGenerateResponse(delta=delta).SerializeToString()
            self.gate.wait(60)

    def _begin(self, request: bytes, context: grpc.ServicerContext) -> None:
        adapter = generation_pb2.GenerateRequest.FromString(request).adapter
        self.asked[adapter] += 1
        if self.failure:
            self.failure(context)
