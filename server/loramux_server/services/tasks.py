"""Whether an adapter does what it is asked for: to continue text, or to classify it."""

from loramux.errors import FailedPreconditionError
from loramux_adapters.head import Task
from loramux_server.store.record import AdapterRecord

_WHAT = {Task.SEQUENCE: "texts", Task.TOKENS: "tokens"}


def check_continues(record: AdapterRecord, field: str) -> None:
    """Demand that an adapter, named by the request field `field`, continues text.

    Raises:
        FailedPreconditionError: It classifies.
    """
    if record.task:
        what = _WHAT[Task(record.task)]
        raise _mismatch(
            f"{field} is {record}, which classifies {what} (task {record.task}) and makes no text; "
            "call loramux.v1.ClassificationService.Classify",
            field,
        )


def check_classifies(record: AdapterRecord, field: str) -> None:
    """Demand that an adapter, named by the request field `field`, classifies.

    Raises:
        FailedPreconditionError: It continues text.
    """
    if not record.task:
        raise _mismatch(
            f"{field} is {record}, which continues text and has no head (task SEQ_CLS or "
            "TOKEN_CLS); call loramux.v1.GenerationService.Generate",
            field,
        )


def _mismatch(message: str, field: str) -> FailedPreconditionError:
    return FailedPreconditionError(message, reason="ADAPTER_TASK_MISMATCH", field=field)
