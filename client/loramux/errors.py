"""Errors of calls: the server raises them, and the client raises them again.

LoramuxError                     gRPC status
├─ InvalidArgumentError          INVALID_ARGUMENT     the request is invalid
├─ NotFoundError                 NOT_FOUND            no such adapter
├─ AlreadyExistsError            ALREADY_EXISTS       the name or id is taken
├─ FailedPreconditionError       FAILED_PRECONDITION  valid request, wrong state of the server
├─ AbortedError                  ABORTED              lost a race; read again, then retry
├─ OutOfRangeError               OUT_OF_RANGE         past the end of the valid range
├─ ResourceExhaustedError        RESOURCE_EXHAUSTED   queue, quota or disk is full
├─ DeadlineExceededError         DEADLINE_EXCEEDED    the timeout expired
├─ CancelledError                CANCELLED            the caller cancelled the call
├─ UnavailableError              UNAVAILABLE          the server or its engine is unavailable; retry
├─ DataLossError                 DATA_LOSS            stored data is corrupt
├─ UnauthenticatedError          UNAUTHENTICATED      the caller is not authenticated
├─ PermissionDeniedError         PERMISSION_DENIED    the caller is not permitted to do this
├─ UnimplementedError            UNIMPLEMENTED        the server does not implement this call
└─ InternalError                 INTERNAL, UNKNOWN    a bug; the message has an incident id
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import grpc

__all__ = [
    "AbortedError",
    "AlreadyExistsError",
    "CancelledError",
    "DataLossError",
    "DeadlineExceededError",
    "FailedPreconditionError",
    "InternalError",
    "InvalidArgumentError",
    "LoramuxError",
    "NotFoundError",
    "OutOfRangeError",
    "PermissionDeniedError",
    "ResourceExhaustedError",
    "UnauthenticatedError",
    "UnavailableError",
    "UnimplementedError",
]


class _Code:
    """The gRPC status of a class; gRPC is imported on first use."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, error: object, kind: type) -> "grpc.StatusCode":
        import grpc

        return grpc.StatusCode[self._name]


class LoramuxError(Exception):
    """A call failed.

    Attributes:
        code: The gRPC status.
        reason: The stable cause, a name of `loramux.v1.ErrorReason` without its prefix, or its
            number if this client does not know it; empty if the transport generated the status.
        field: The invalid request field; empty if no single field is at fault.
        retry_delay: Seconds to wait before a retry; None if a retry would not help.
        quota: The subject whose quota is exceeded, such as `tenant:acme`; empty if no quota is.
    """

    code = _Code("UNKNOWN")

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        field: str = "",
        retry_delay: float | None = None,
        quota: str = "",
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.field = field
        self.retry_delay = retry_delay
        self.quota = quota


class InvalidArgumentError(LoramuxError, ValueError):
    """The request is invalid and would fail again."""

    code = _Code("INVALID_ARGUMENT")


class NotFoundError(LoramuxError, LookupError):
    """Something that the request refers to does not exist."""

    code = _Code("NOT_FOUND")


class AlreadyExistsError(LoramuxError):
    """The name or id is taken."""

    code = _Code("ALREADY_EXISTS")


class FailedPreconditionError(LoramuxError):
    """The request is valid, but the server is not in the required state."""

    code = _Code("FAILED_PRECONDITION")


class AbortedError(LoramuxError):
    """The call lost a race with another one; read the new state, then retry."""

    code = _Code("ABORTED")


class OutOfRangeError(LoramuxError):
    """The request is past the end of the valid range."""

    code = _Code("OUT_OF_RANGE")


class ResourceExhaustedError(LoramuxError):
    """A queue, a quota or a disk is full, or a stream was not read."""

    code = _Code("RESOURCE_EXHAUSTED")


class DeadlineExceededError(LoramuxError, TimeoutError):
    """The timeout of the call expired."""

    code = _Code("DEADLINE_EXCEEDED")


class CancelledError(LoramuxError):
    """The caller cancelled the call."""

    code = _Code("CANCELLED")


class UnavailableError(LoramuxError, ConnectionError):
    """The server or its engine is unavailable; a retry may help."""

    code = _Code("UNAVAILABLE")


class DataLossError(LoramuxError):
    """Stored data is corrupt."""

    code = _Code("DATA_LOSS")


class UnauthenticatedError(LoramuxError):
    """The caller is not authenticated."""

    code = _Code("UNAUTHENTICATED")


class PermissionDeniedError(LoramuxError, PermissionError):
    """The caller is authenticated but not permitted to do this."""

    code = _Code("PERMISSION_DENIED")


class UnimplementedError(LoramuxError):
    """The server does not implement this call."""

    code = _Code("UNIMPLEMENTED")


class InternalError(LoramuxError):
    """A bug in the server; the message has an incident id to report."""

    code = _Code("INTERNAL")
