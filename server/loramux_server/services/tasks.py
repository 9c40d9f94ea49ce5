"""Whether an adapter does what it is asked for: to continue text, label it, embed it."""

from loramux.errors import FailedPreconditionError
from loramux_adapters.head import FEATURES, Task
from loramux_server.store.record import AdapterRecord

_GENERATE = "loramux.v1.GenerationService.Generate"
_CLASSIFY = "loramux.v1.ClassificationService.Classify"
_ANSWER = "loramux.v1.QuestionAnsweringService.Answer"
_EMBED = "loramux.v1.EmbeddingService.Embed"
_MEANT = {
    "": ("continues text", _GENERATE),
    Task.SEQUENCE: ("classifies texts", _CLASSIFY),
    Task.TOKENS: ("classifies tokens", _CLASSIFY),
    Task.SPANS: ("answers questions", _ANSWER),
    FEATURES: ("embeds texts", _EMBED),
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
    if record.task not in (Task.SEQUENCE, Task.TOKENS):
        raise _mismatch(record, field, "has no labels (task SEQ_CLS or TOKEN_CLS)")


def check_answers(record: AdapterRecord, field: str) -> None:
    """Demand that an adapter, named by the request field `field`, answers questions.

    Raises:
        FailedPreconditionError: It does something else.
    """
    if record.task != Task.SPANS:
        raise _mismatch(record, field, "finds no answers in texts (task QUESTION_ANS)")


def check_embeds(record: AdapterRecord, field: str) -> None:
    """Demand that an adapter, named by the request field `field`, can embed texts.

    One that continues text can, by the states of which it would choose a token.

    Raises:
        FailedPreconditionError: It cannot.
    """
    if record.task not in ("", FEATURES):
        raise _mismatch(record, field, "has a head, for which its hidden states were trained")
    if record.virtual_tokens or record.invocation:
        what = "virtual tokens" if record.virtual_tokens else "invocation tokens"
        raise FailedPreconditionError(
            f"{field} is {record}, which has {what}: it is not served to embed texts",
            reason="ADAPTER_TASK_MISMATCH",
            field=field,
        )


def _mismatch(record: AdapterRecord, field: str, lacks: str) -> FailedPreconditionError:
    does, method = _MEANT[record.task]
    task = f" (task {record.task})" if record.task else ""
    return FailedPreconditionError(
        f"{field} is {record}, which {does}{task} and {lacks}; call {method}",
        reason="ADAPTER_TASK_MISMATCH",
        field=field,
    )
