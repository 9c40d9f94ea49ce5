"""The head among the tensors of an adapter.

PEFT saves it as one of `modules_to_save`, which it adds by itself for the task. Sources of the
meaning: `PeftModelForSequenceClassification`, `PeftModelForTokenClassification` and
`PeftModelForQuestionAnswering`, PEFT 0.21, and transformers' models of the same tasks.
"""

from collections.abc import Mapping

from loramux_adapters.errors import PackageError, shown
from loramux_adapters.fields import path_of, text, unsupported
from loramux_adapters.head import MAX_LABELS, Head, Task
from loramux_adapters.saved import saved_names, without_repeats
from loramux_adapters.tensorfile import TensorInfo

_LABELS = ("score", "classifier")
HEAD_NAMES = {Task.SEQUENCE: _LABELS, Task.TOKENS: _LABELS, Task.SPANS: ("qa_outputs",)}
"""Task -> modules of which its head is one; where PEFT asks for two, a model has one."""


def take_head(
    config: Mapping[str, object], tensors: Mapping[str, TensorInfo]
) -> tuple[Head | None, Mapping[str, TensorInfo]]:
    """Return the head of an adapter for a task that has one, and its other tensors.

    Raises:
        PackageError: There is no head, or one of another kind than is served.
    """
    value = text(config, "task_type")
    if value not in set(Task):
        return None, tensors
    task = Task(value)
    kept = {tensor.name: tensor for tensor in without_repeats(tensors, saved_names(config))}
    parts: dict[str, TensorInfo] = {}
    for name, tensor in kept.items():
        module, _, part = path_of(name).partition(".")
        if module in HEAD_NAMES[task]:
            if part not in ("weight", "bias"):
                raise PackageError(
                    f"tensor {name} is refused: a head is served that is one linear layer, "
                    f"'{module}.weight' and '{module}.bias', trained whole (modules_to_save)",
                    "UNSUPPORTED_ADAPTER_FEATURE",
                )
            if part in parts:
                raise PackageError(f"tensors {parts[part].name} and {name} are of two heads")
            parts[part] = tensor
    if "weight" not in parts:
        names = " or ".join(f"'{name}.weight'" for name in HEAD_NAMES[task])
        raise unsupported(
            "task_type",
            str(task),
            f"there is no head ({names}), which PEFT saves with modules_to_save",
        )
    head = Head(task, parts["weight"], parts.get("bias"))
    _check_shapes(head)
    of_head = {tensor.name for tensor in head.tensors}
    return head, {name: tensor for name, tensor in kept.items() if name not in of_head}


def _check_shapes(head: Head) -> None:
    shape = list(head.weight.shape)
    if head.task is Task.SPANS and (len(shape) != 2 or shape[0] != 2):
        raise PackageError(
            f"tensor {head.weight.name}: shape {shown(shape)} is not that of a head of spans, "
            "[2, width], with an output for the begin of an answer and one for its end"
        )
    if len(shape) != 2 or not 1 <= shape[0] <= MAX_LABELS:
        raise PackageError(
            f"tensor {head.weight.name}: shape {shown(shape)} is not that of a head, "
            f"[labels, width], with 1 to {MAX_LABELS} labels"
        )
    if head.bias and head.bias.shape != (head.num_labels,):
        raise PackageError(
            f"tensor {head.bias.name}: shape {shown(list(head.bias.shape))} is not "
            f"[{head.num_labels}], a number for each output"
        )
