"""What the outputs of a classification head mean: label names and problem type.

PEFT does not save this, so a package has it as the note `classification`.
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from loramux_adapters.errors import PackageError, shown
from loramux_adapters.files import read_object
from loramux_adapters.head import MAX_LABELS, Head, Task

CONFIG_FILE = "config.json"
"""Config of the trained model, as transformers saves it."""
MAX_CONFIG_BYTES = 1 << 20
MAX_LABEL = 256


class ProblemType(enum.StrEnum):
    """How outputs become scores: transformers' `problem_type`."""

    SINGLE_LABEL = "single_label_classification"
    """Exactly one label applies: softmax."""
    MULTI_LABEL = "multi_label_classification"
    """Each label applies or not: sigmoid."""
    REGRESSION = "regression"
    """Numbers, used as they are."""


@dataclass(frozen=True, slots=True)
class Labels:
    """The labels of a head's outputs, in order, and the problem type."""

    names: tuple[str, ...]
    problem: ProblemType

    @property
    def note(self) -> dict[str, object]:
        """The note of a package."""
        return {"labels": list(self.names), "problem_type": str(self.problem)}


def check_labels(note: Mapping[str, object], where: str) -> Mapping[str, object]:
    """Validate `note`, the note `classification`, and return it; messages begin with `where`.

    Raises:
        PackageError: The note is malformed.
    """
    for name, value in note.items():
        if name not in ("labels", "problem_type"):
            raise _invalid(
                f"{where}: {shown(name)} is not a known key; expected labels or problem_type"
            )
        if name == "labels":
            _check_names(value, f"{where}: labels")
        elif not isinstance(value, str) or value not in set(ProblemType):
            known = ", ".join(ProblemType)
            raise _invalid(f"{where}: problem_type is {shown(value)}; expected one of {known}")
    return note


def labels_of(head: Head, notes: Mapping[str, object]) -> Labels:
    """Return the labels of `head` by validated `notes`.

    Without names, labels are LABEL_0 and so on. Without a problem type, as in transformers, a
    single output is a regression, and several are a single-label classification.

    Raises:
        PackageError: The notes do not fit the head.
    """
    note = notes.get("classification")
    given = note if isinstance(note, dict) else {}
    names = given.get("labels") or [f"LABEL_{i}" for i in range(head.num_labels)]
    if len(names) != head.num_labels:
        raise _invalid(
            f"classification: labels has {len(names)} names; the head ({head.weight.name}) has "
            f"{head.num_labels} outputs"
        )
    single = head.num_labels == 1 and head.task is Task.SEQUENCE
    default = ProblemType.REGRESSION if single else ProblemType.SINGLE_LABEL
    problem = ProblemType(given.get("problem_type") or default)
    if head.task is Task.TOKENS and problem is not ProblemType.SINGLE_LABEL:
        raise _invalid(
            f"classification: problem_type is {str(problem)!r}; expected "
            f"{str(ProblemType.SINGLE_LABEL)!r} for task_type {head.task}, one label per token"
        )
    return Labels(tuple(names), problem)


def labels_from_folder(source: Path) -> dict[str, object]:
    """Return the note `classification` from the `config.json` in `source`; empty if it has none.

    Raises:
        PackageError: The file is malformed.
    """
    if not (source / CONFIG_FILE).exists():
        return {}
    config = read_object(source, CONFIG_FILE, MAX_CONFIG_BYTES)
    found: dict[str, object] = {}
    names = config.get("id2label")
    if names is not None:
        numbers = [str(i) for i in range(len(names))] if isinstance(names, dict) else []
        if not isinstance(names, dict) or sorted(names) != sorted(numbers):
            raise _invalid(
                f"{CONFIG_FILE}: id2label is {shown(names)}; expected an object of names for 0, 1 …"
            )
        found["labels"] = [names[number] for number in numbers]
    if config.get("problem_type") is not None:
        found["problem_type"] = config["problem_type"]
    return dict(check_labels(found, CONFIG_FILE))


def _check_names(value: object, where: str) -> None:
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_LABELS:
        raise _invalid(f"{where} is {shown(value)}; expected a list of 1 to {MAX_LABELS} names")
    for name in value:
        if not isinstance(name, str) or not 1 <= len(name) <= MAX_LABEL:
            raise _invalid(
                f"{where} has {shown(name)}; expected names of 1 to {MAX_LABEL} characters"
            )


def _invalid(message: str) -> PackageError:
    return PackageError(message, "INVALID_ADAPTER_CONFIG")
