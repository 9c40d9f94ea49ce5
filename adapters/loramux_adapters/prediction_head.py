"""Prediction heads that the `adapters` library saves beside an adapter.

Heads of its own classes (`BertAdapterModel`) are a sequence of linear layers with an activation
function between them, and read the first token of a text or every token; see
`adapters.heads.base`, version 1.3. Heads of transformers' classes for a task have the parameters of
those classes.
"""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from loramux_adapters.errors import PackageError, shown
from loramux_adapters.fields import PREFIX, integer, invalid, mapping, text, unsupported
from loramux_adapters.files import open_regular, pickle_hint, read_object
from loramux_adapters.head import MAX_LABELS, Task
from loramux_adapters.labels import ProblemType
from loramux_adapters.tensorfile import ReadTensor, TensorInfo, read_header, tensor_reader

CONFIG_FILE, TENSOR_FILE = "head_config.json", "model_head.safetensors"
PICKLE_FILE = "pytorch_model_head.bin"
MAX_CONFIG_BYTES = 1 << 20
MAX_LAYERS = 8
_SINGLE = {"classification": Task.SEQUENCE, "tagging": Task.TOKENS}
_TASKS = _SINGLE | {
    "multilabel_classification": Task.SEQUENCE, "question_answering": Task.SPANS,
}  # fmt: skip
"""Type of a head of the library's classes -> its task."""
_CLASSES = {
    "ForSequenceClassification": Task.SEQUENCE, "ForTokenClassification": Task.TOKENS,
    "ForQuestionAnswering": Task.SPANS,
}  # fmt: skip
_KNOWN = frozenset({
    "head_type", "num_labels", "layers", "activation_function", "label2id", "use_pooler", "bias",
    "dropout_prob",
})  # fmt: skip
_PART = re.compile(r"heads\.(?P<head>.+)\.(?P<number>[0-9]{1,4})\.(?P<parameter>weight|bias)")


@dataclass(frozen=True, slots=True)
class LibraryHead:
    """A head, in the form that a package has."""

    task: Task
    activation: str
    """Activation function between its layers; empty for a head of transformers' classes."""
    tensors: Mapping[str, TensorInfo]
    """Name in the package -> the tensor in the file."""
    read: ReadTensor
    labels: Mapping[str, object]
    """The note `classification`."""

    @property
    def fields(self) -> dict[str, object]:
        """What the package's config says about the head."""
        notes = {"task_type": str(self.task), "head_activation": self.activation}
        return {name: value for name, value in notes.items() if value}


def has_head(source: Path) -> bool:
    """Return whether there is a prediction head in the folder `source`."""
    return any((source / name).exists() for name in (CONFIG_FILE, TENSOR_FILE, PICKLE_FILE))


@contextmanager
def open_head(source: Path) -> Iterator[LibraryHead | None]:
    """Open the prediction head in the folder `source`; None if there is none.

    Raises:
        PackageError: It is malformed, or of an unsupported kind.
    """
    if not has_head(source):
        yield None
        return
    if not (source / TENSOR_FILE).exists() and (source / PICKLE_FILE).exists():
        raise PackageError(f"the prediction head: {pickle_hint(source, PICKLE_FILE)}")
    config = read_object(source, CONFIG_FILE, MAX_CONFIG_BYTES)
    try:
        file = open_regular(source / TENSOR_FILE)
    except OSError as error:
        raise PackageError(f"{source} has no readable {TENSOR_FILE} ({error.strerror})") from None
    with file:
        header = read_header(file, os.fstat(file.fileno()).st_size)
        read = tensor_reader(file, header.data_start)
        of = _of_class if config.get("config") is None else _of_library
        yield of(config, header.tensors, read)


def _of_class(
    config: Mapping[str, object], tensors: Mapping[str, TensorInfo], read: ReadTensor
) -> LibraryHead:
    """Return a head of one of transformers' classes."""
    name = text(config, "model_class")
    task = next((task for ending, task in _CLASSES.items() if name.endswith(ending)), None)
    if task is None:
        raise unsupported("model_class", name, f"expected a head of {', '.join(_CLASSES)}")
    named = {f"{PREFIX}{each}": tensor for each, tensor in tensors.items()}
    return LibraryHead(task, "", named, read, _labels(config, task))


def _of_library(
    config: Mapping[str, object], tensors: Mapping[str, TensorInfo], read: ReadTensor
) -> LibraryHead:
    """Return a head of one of the library's classes."""
    settings = mapping(config, "config")
    kind = text(settings, "head_type")
    if kind not in _TASKS:
        raise unsupported("head_type", kind, f"expected one of {', '.join(_TASKS)}")
    for name, value in settings.items():
        if name not in _KNOWN and value:
            raise unsupported(name, value, "the field is not known to this version")
    if settings.get("use_pooler"):
        raise unsupported(
            "use_pooler", True, "a head must read the last hidden state of the first token"
        )
    num_layers = integer(settings, "layers", 1, 1, MAX_LAYERS)
    task = _TASKS[kind]
    labels = _labels(settings, task)
    if kind == "multilabel_classification":
        labels["problem_type"] = str(ProblemType.MULTI_LABEL)
    elif kind in _SINGLE and integer(settings, "num_labels", 2, 1, MAX_LABELS) > 1:
        labels["problem_type"] = str(ProblemType.SINGLE_LABEL)
    activation = text(settings, "activation_function") or "linear"
    return LibraryHead(task, activation, _in_order(tensors, num_layers), read, labels)


def _in_order(tensors: Mapping[str, TensorInfo], num_layers: int) -> dict[str, TensorInfo]:
    """Return the layers' tensors, with the layers numbered consecutively from 0.

    The library counts activations and dropouts as well.
    """
    found: dict[int, dict[str, TensorInfo]] = {}
    heads = set()
    for name, tensor in tensors.items():
        part = _PART.fullmatch(name)
        if not part:
            raise PackageError(
                f"tensor {name} is not supported; expected 'heads.<head>.<number>.weight' or "
                "'.bias' of a prediction head",
                "UNSUPPORTED_ADAPTER_FEATURE",
            )
        heads.add(part["head"])
        found.setdefault(int(part["number"]), {})[part["parameter"]] = tensor
    if len(heads) != 1 or len(found) != num_layers:
        raise PackageError(
            f"{TENSOR_FILE} has {len(found)} layers of the heads {shown(sorted(heads))}; expected "
            f"{num_layers} of one head, as in {CONFIG_FILE}"
        )
    return {
        f"{PREFIX}classifier.{number}.{parameter}": tensor
        for number, (_, parts) in enumerate(sorted(found.items()))
        for parameter, tensor in parts.items()
    }


def _labels(config: Mapping[str, object], task: Task) -> dict[str, object]:
    """Return the note for the label names; empty if they are transformers' default names."""
    numbers = config.get("label2id")
    if not task.classifies or not numbers:
        return {}
    if not isinstance(numbers, dict) or sorted(map(str, numbers.values())) != sorted(
        map(str, range(len(numbers)))
    ):
        raise invalid("label2id", f"is {shown(numbers)}; expected an object of names with 0, 1 …")
    names = sorted(numbers, key=lambda name: int(numbers[name]))
    if names == [f"LABEL_{number}" for number in range(len(names))]:
        return {}
    return {"labels": names}
