"""Everything that can go wrong in a call: the server raises these, the client raises them again.

LoramuxError                     gRPC status
├─ InvalidArgumentError          INVALID_ARGUMENT     the request can never succeed as it is
├─ NotFoundError                 NOT_FOUND            no such adapter
├─ AlreadyExistsError            ALREADY_EXISTS       the name or id is taken
├─ FailedPreconditionError       FAILED_PRECONDITION  right request, wrong state of the server
├─ AbortedError                  ABORTED              lost a race; read again, then retry
├─ OutOfRangeError               OUT_OF_RANGE         past the end of what there is
├─ ResourceExhaustedError        RESOURCE_EXHAUSTED   queue, quota or disk is full
├─ DeadlineExceededError         DEADLINE_EXCEEDED    time ran out
├─ CancelledError                CANCELLED            the caller gave up
├─ UnavailableError              UNAVAILABLE          the server or its engine is away; retry
├─ DataLossError                 DATA_LOSS            stored bytes are damaged
├─ UnauthenticatedError          UNAUTHENTICATED      the caller is not known
├─ PermissionDeniedError         PERMISSION_DENIED    the caller is known and may not
├─ UnimplementedError            UNIMPLEMENTED        the server does not have this call
└─ InternalError                 INTERNAL, UNKNOWN    a defect; the message has an incident id
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
    """The gRPC status of a class; gRPC is loaded when somebody asks for it."""

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
            number where this client does not know it; empty where the transport made the status.
        field: The request field at fault; empty where no single one is.
        retry_delay: Seconds to wait before trying again; None where that would not help.
        quota: Whose quota is exceeded, such as `tenant:acme`; empty where it is not about one.
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
    """The request can never succeed as it is."""

    code = _Code("INVALID_ARGUMENT")


class NotFoundError(LoramuxError, LookupError):
    """What the request names does not exist."""

    code = _Code("NOT_FOUND")


class AlreadyExistsError(LoramuxError):
    """The name or id is taken."""

    code = _Code("ALREADY_EXISTS")


class FailedPreconditionError(LoramuxError):
    """The request is right, but the server is in the wrong state for it."""

    code = _Code("FAILED_PRECONDITION")


class AbortedError(LoramuxError):
    """Another caller was first; read the new state, then retry."""

    code = _Code("ABORTED")


class OutOfRangeError(LoramuxError):
    """The request goes past the end of what there is."""

    code = _Code("OUT_OF_RANGE")


class ResourceExhaustedError(LoramuxError):
    """A queue, a quota or a disk is full, or a stream was not read."""

    code = _Code("RESOURCE_EXHAUSTED")


class DeadlineExceededError(LoramuxError, TimeoutError):
    """The time given to the call ran out."""

    code = _Code("DEADLINE_EXCEEDED")


class CancelledError(LoramuxError):
    """The caller gave up."""

    code = _Code("CANCELLED")


class UnavailableError(LoramuxError, ConnectionError):
    """The server or its engine is away; a retry may help."""

    code = _Code("UNAVAILABLE")


class DataLossError(LoramuxError):
    """Stored bytes are damaged."""

    code = _Code("DATA_LOSS")


class UnauthenticatedError(LoramuxError):
    """The caller is not known."""

    code = _Code("UNAUTHENTICATED")


class PermissionDeniedError(LoramuxError, PermissionError):
    """The caller is known and may not."""

    code = _Code("PERMISSION_DENIED")


class UnimplementedError(LoramuxError):
    """The server does not have this call."""

    code = _Code("UNIMPLEMENTED")


class InternalError(LoramuxError):
    """A defect of the server; the message has an incident id to report."""

    code = _Code("INTERNAL")
