"""Which task an adapter is trained for, depending on the examples and the base."""

from collections.abc import Mapping

from transformers import PreTrainedConfig

from loramux_adapters.errors import PackageError, shown
from loramux_adapters.head import Task
from loramux_adapters.train.examples import Examples, Form
from loramux_adapters.train.text_models import is_encoder, is_encoder_decoder

TASKS: Mapping[str, Task | None] = {
    "generate": None,
    "classify": Task.SEQUENCE,
    "tag": Task.TOKENS,
    "answer": Task.SPANS,
}
"""Name of a task -> the task of the head; None for text generation."""
_FITTING: Mapping[Form, tuple[str, ...]] = {
    Form.PROMPTS: ("generate",),
    Form.LABELLED: ("generate", "classify"),
    Form.PAIRS: ("classify",),
    Form.SEVERAL: ("classify",),
    Form.PAIRS_SEVERAL: ("classify",),
    Form.SCORED: ("classify",),
    Form.PAIRS_SCORED: ("classify",),
    Form.TAGGED: ("tag",),
    Form.QUESTIONS: ("answer",),
}
"""Form of lines -> tasks that they fit; the first one that the base supports is the default."""


def task_of(requested: str | None, examples: Examples, config: PreTrainedConfig) -> Task | None:
    """Return the task of the head to train; None for text generation.

    Args:
        requested: A name of `TASKS`; None for the default of the examples' form.
        examples: The examples.
        config: The config of the base.

    Raises:
        PackageError: The base or the examples do not fit the task.
    """
    if requested is not None and requested not in TASKS:
        raise _fault(f"task is {shown(requested)}; expected one of {', '.join(TASKS)}")
    fitting = _FITTING[examples.form]
    if requested is not None and requested not in fitting:
        wanted = " or ".join(
            str(form) for form, tasks in _FITTING.items() if requested in tasks
        )  # fmt: skip
        raise _fault(
            f"task is {requested!r}, but {examples.path} has lines with {examples.form}, for task "
            f"{' or '.join(fitting)}; {requested} needs lines with {wanted}"
        )
    does, what = _supported_tasks(config)
    for task in fitting if requested is None else (requested,):
        if task in does:
            return TASKS[task]
    wanted = ", or ".join(str(form) for form in _FITTING if set(_FITTING[form]) & set(does))
    raise PackageError(
        f"{examples.path} has lines with {examples.form}, for task "
        f"{requested or ' or '.join(fitting)}, but the base ({config.model_type}) {what}: it needs "
        f"lines with {wanted}",
        "ADAPTER_BASE_MISMATCH",
    )


def task_type(task: Task | None, config: PreTrainedConfig) -> str:
    """Return PEFT's `task_type` for `task` on a base."""
    if task is not None:
        return str(task)
    return "SEQ_2_SEQ_LM" if is_encoder_decoder(config) else "CAUSAL_LM"


def _supported_tasks(config: PreTrainedConfig) -> tuple[tuple[str, ...], str]:
    """Return the tasks that a base can be trained for, and why no others."""
    if is_encoder_decoder(config):
        return ("generate",), "is an encoder-decoder, which supports generation only"
    if is_encoder(config):
        return ("classify", "tag", "answer"), "is an encoder, which does not generate text"
    return tuple(TASKS), "is a decoder"


def _fault(message: str) -> PackageError:
    return PackageError(message, "INVALID_FIELD")
