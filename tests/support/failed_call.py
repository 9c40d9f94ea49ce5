"""How calls end that a server, or nobody, answered."""

from typing import Any

import grpc

from loramux.errors import ResourceExhaustedError
from loramux_server.transport.rpc import status_metadata


class Failure(grpc.RpcError, grpc.Call):
    """How a call ended."""

    def __init__(
        self, code: grpc.StatusCode, *metadata: tuple[str, str | bytes], details: str = ""
    ) -> None:
        self._code, self._metadata, self._details = code, metadata, details

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._details

    def trailing_metadata(self) -> Any:
        return self._metadata

    initial_metadata = is_active = time_remaining = cancel = add_callback = None  # type: ignore


AWAY = Failure(grpc.StatusCode.UNAVAILABLE)


def refusal(reason: str, delay: float | None = None) -> Failure:
    """What a server sends that has no room."""
    error = ResourceExhaustedError("full", reason=reason, retry_delay=delay)
    return Failure(grpc.StatusCode.RESOURCE_EXHAUSTED, *status_metadata(error))
