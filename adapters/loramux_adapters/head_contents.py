"""Extraction of the head from an adapter's tensors.

PEFT saves it as one of `modules_to_save`, to which it adds the head of the task by itself. Sources:
`PeftModelForSequenceClassification`, `PeftModelForTokenClassification` and
`PeftModelForQuestionAnswering`, PEFT 0.21, and transformers' models for these tasks. Layers of the
head with names of their own, such as DistilBERT's `pre_classifier`, can only be recognized with the
base at hand; see `loramux_adapters.post_layers`.
"""

from collections.abc import Mapping

from loramux_adapters.activations import activation
from loramux_adapters.errors import PackageError, shown
from loramux_adapters.fields import PREFIX, path_of, text, unsupported
from loramux_adapters.head import MAX_LABELS, Head, Task
from loramux_adapters.saved import saved_names, without_repeats
from loramux_adapters.tensorfile import TensorInfo

_LABELS = ("score", "classifier")
HEAD_NAMES = {Task.SEQUENCE: _LABELS, Task.TOKENS: _LABELS, Task.SPANS: ("qa_outputs", _LABELS[1])}
"""Task -> possible names of its head's module; PEFT adds two for a task, and a model has one of
them. ModernBERT's question answering head is named like a classifier."""
_OF_METHODS = ("lora_", "ia3_", "base_layer", "token_adapter", "modules_to_save", "original_module")
"""Prefixes of name parts that PEFT inserts between a module and its parameters."""


def take_head(
    config: Mapping[str, object], tensors: Mapping[str, TensorInfo], prefix: str = PREFIX
) -> tuple[Head | None, Mapping[str, TensorInfo]]:
    """Split the head off an adapter's tensors; None if its task has no head.

    Args:
        config: The parsed config.
        tensors: Those of modules of the model that it was trained on.
        prefix: PEFT's prefix of their names.

    Raises:
        PackageError: The task needs a head and there is none, or it is of an unsupported kind.
    """
    value = text(config, "task_type")
    if value not in set(Task):
        return None, tensors
    task = Task(value)
    kept = {tensor.name: tensor for tensor in without_repeats(tensors, saved_names(config), prefix)}
    found: dict[str, TensorInfo] = {}
    for name, tensor in kept.items():
        path = path_of(name, prefix)
        if path.partition(".")[0] not in HEAD_NAMES[task]:
            continue
        if any(part.startswith(_OF_METHODS) for part in path.split(".")):
            raise not_linear(name, path.partition(".")[0])
        other = next((each for each in found if _module(each) != _module(path)), None)
        if other is not None:
            raise PackageError(f"tensors {found[other].name} and {name} belong to two heads")
        found[path] = tensor
    if not any(name.endswith(".weight") for name in found):
        names = " or ".join(f"'{name}.weight'" for name in HEAD_NAMES[task])
        raise unsupported(
            "task_type",
            str(task),
            f"there is no head ({names}), which PEFT saves with modules_to_save",
        )
    between = text(config, "head_activation")
    if between:
        last = max(name for name in found if name.endswith(".weight")).removesuffix(".weight")
        head = Head(task, last, found, activation(between, "head_activation"))
    else:
        head = Head(task, _last(found), found)
    _check_shapes(head)
    of_head = {tensor.name for tensor in head.tensors}
    return head, {name: tensor for name, tensor in kept.items() if name not in of_head}


def not_linear(tensor: str, module: str) -> PackageError:
    """Return the error for a `tensor` of the head `module` that is not part of one linear layer."""
    return PackageError(
        f"tensor {tensor} is not supported: a head must be one linear layer, '{module}.weight' and "
        f"'{module}.bias', trained in full (modules_to_save)",
        "UNSUPPORTED_ADAPTER_FEATURE",
    )


def _module(path: str) -> str:
    return path.partition(".")[0]


def _last(found: Mapping[str, TensorInfo]) -> str:
    """Return the name of the head's last linear layer.

    It is the one whose output width no other layer takes as input. If that is ambiguous, or fails
    because there are as many labels as hidden units, the name tells.
    """
    weights = {
        name.removesuffix(".weight"): tensor.shape
        for name, tensor in sorted(found.items())
        if name.endswith(".weight")
    }
    matrices = {name: shape for name, shape in weights.items() if len(shape) == 2} or weights
    taken = {shape[-1:] for shape in matrices.values()}
    left = [name for name, shape in matrices.items() if shape[:1] not in taken] or list(matrices)
    return next((name for name in left if "out" in name.rpartition(".")[2]), left[-1])


def _check_shapes(head: Head) -> None:
    shape = list(head.weight.shape)
    if head.task is Task.SPANS and (len(shape) != 2 or shape[0] != 2):
        raise PackageError(
            f"tensor {head.weight.name}: shape {shown(shape)} is not [2, width], with one output "
            "for the start of an answer and one for its end"
        )
    if len(shape) != 2 or not 1 <= shape[0] <= MAX_LABELS:
        raise PackageError(
            f"tensor {head.weight.name}: shape {shown(shape)} is not [labels, width], with 1 to "
            f"{MAX_LABELS} labels"
        )
    if head.bias and head.bias.shape != (head.num_labels,):
        raise PackageError(
            f"tensor {head.bias.name}: shape {shown(list(head.bias.shape))} is not "
            f"[{head.num_labels}], one value per output"
        )
