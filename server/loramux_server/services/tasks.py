"""Whether an adapter does what it is asked for: continue, label or embed text."""

from loramux.errors import FailedPreconditionError
from loramux_adapters.head import FEATURES, Task
from loramux_server.store.record import AdapterRecord
from loramux_server.wire.model_info import ModelInfo
from loramux_server.wire.model_kind import ModelKind

_GENERATE = "loramux.v1.GenerationService.Generate"
_CLASSIFY = "loramux.v1.ClassificationService.Classify"
_ANSWER = "loramux.v1.QuestionAnsweringService.Answer"
_EMBED = "loramux.v1.EmbeddingService.Embed"
_TASKS = {
    "": ("generates text", _GENERATE),
    Task.SEQUENCE: ("classifies texts", _CLASSIFY),
    Task.TOKENS: ("classifies tokens", _CLASSIFY),
    Task.SPANS: ("answers questions", _ANSWER),
    FEATURES: ("embeds texts", _EMBED),
}
"""Task of an adapter -> what it does, and the method to call for that."""


def check_writes(model: ModelInfo) -> None:
    """Check that the base model generates text.

    Raises:
        FailedPreconditionError: It is an encoder.
    """
    if model.is_encoder:
        raise FailedPreconditionError(
            f"the base model, {model.architecture}, is an encoder and does not generate text; call "
            f"{_CLASSIFY}, {_ANSWER} or {_EMBED}",
            reason="BASE_CONTINUES_NO_TEXT",
        )


def check_reads(model: ModelInfo) -> None:
    """Check that the base model can label or embed texts.

    Raises:
        FailedPreconditionError: It is an encoder-decoder.
    """
    if model.kind is ModelKind.SEQ2SEQ:
        raise FailedPreconditionError(
            f"the base model, {model.architecture}, is an encoder-decoder: it generates text and "
            f"does not classify or embed it; call {_GENERATE}",
            reason="BASE_ONLY_WRITES",
        )


def task_on(record: AdapterRecord, model: ModelInfo) -> str:
    """Return what an adapter does on the base `model`, as PEFT's `task_type`; empty for generation.

    On an encoder, an adapter without a head embeds texts.
    """
    return record.task or (FEATURES if model.is_encoder else "")


def check_continues(record: AdapterRecord, field: str) -> None:
    """Check that an adapter, named by the request field `field`, generates text.

    Raises:
        FailedPreconditionError: It does something else.
    """
    if record.task:
        raise _mismatch(record, record.task, field, "does not generate text")


def check_classifies(record: AdapterRecord, model: ModelInfo, field: str) -> None:
    """Check that an adapter, named by the request field `field`, classifies.

    Raises:
        FailedPreconditionError: It does something else.
    """
    if record.task not in (Task.SEQUENCE, Task.TOKENS):
        does = task_on(record, model)
        raise _mismatch(record, does, field, "has no labels (task SEQ_CLS or TOKEN_CLS)")


def check_answers(record: AdapterRecord, model: ModelInfo, field: str) -> None:
    """Check that an adapter, named by the request field `field`, answers questions.

    Raises:
        FailedPreconditionError: It does something else.
    """
    if record.task != Task.SPANS:
        does = task_on(record, model)
        raise _mismatch(record, does, field, "does not answer questions (task QUESTION_ANS)")


def check_embeds(record: AdapterRecord, model: ModelInfo, field: str) -> None:
    """Check that an adapter, named by the request field `field`, can embed texts.

    One that generates text can, by its last hidden states, unless it has invocation tokens, or
    virtual tokens, which were trained for the text that follows them.

    Raises:
        FailedPreconditionError: It cannot.
    """
    if record.task not in ("", FEATURES):
        lacks = "has hidden states that were trained for its head"
        raise _mismatch(record, record.task, field, lacks)
    has_virtual = record.virtual_tokens and not (model.is_encoder or record.task == FEATURES)
    if has_virtual or record.invocation:
        what = "virtual tokens" if record.virtual_tokens else "invocation tokens"
        raise FailedPreconditionError(
            f"{field} is {record}, which has {what}: it cannot embed texts",
            reason="ADAPTER_TASK_MISMATCH",
            field=field,
        )


def _mismatch(record: AdapterRecord, task: str, field: str, lacks: str) -> FailedPreconditionError:
    does, method = _TASKS[task]
    suffix = f" (task {record.task})" if record.task else ""
    return FailedPreconditionError(
        f"{field} is {record}, which {does}{suffix} and {lacks}; call {method}",
        reason="ADAPTER_TASK_MISMATCH",
        field=field,
    )
