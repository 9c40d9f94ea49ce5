"""Whether an adapter does what it is asked for: to continue text, to label it, to find answers."""

from loramux.errors import FailedPreconditionError
from loramux_adapters.head import Task
from loramux_server.store.record import AdapterRecord

_GENERATE = "loramux.v1.GenerationService.Generate"
_CLASSIFY = "loramux.v1.ClassificationService.Classify"
_ANSWER = "loramux.v1.QuestionAnsweringService.Answer"
_MEANT = {
    "": ("continues text", _GENERATE),
    Task.SEQUENCE: ("classifies texts", _CLASSIFY),
    Task.TOKENS: ("classifies tokens", _CLASSIFY),
    Task.SPANS: ("answers questions", _ANSWER),
}
"""Task of an adapter -> what it does, and the method that is to be called for that."""


def check_continues(record: AdapterRecord, field: str) -> None:
    """Demand that an adapter, named by the request field `field`, continues text.

    Raises:
        FailedPreconditionError: It does something else.
    """
    if record.task:
        raise _mismatch(record, field, "makes no text")


def check_classifies(record: AdapterRecord, field: str) -> None:
    """Demand that an adapter, named by the request field `field`, classifies.

    Raises:
        FailedPreconditionError: It does something else.
    """
    if not record.task or not Task(record.task).classifies:
        raise _mismatch(record, field, "has no labels (task SEQ_CLS or TOKEN_CLS)")


def check_answers(record: AdapterRecord, field: str) -> None:
    """Demand that an adapter, named by the request field `field`, answers questions.

    Raises:
        FailedPreconditionError: It does something else.
    """
    if record.task != Task.SPANS:
        raise _mismatch(record, field, "finds no answers in texts (task QUESTION_ANS)")


def _mismatch(record: AdapterRecord, field: str, lacks: str) -> FailedPreconditionError:
    does, method = _MEANT[record.task]
    task = f" (task {record.task})" if record.task else ""
    return FailedPreconditionError(
        f"{field} is {record}, which {does}{task} and {lacks}; call {method}",
        reason="ADAPTER_TASK_MISMATCH",
        field=field,
    )
