"""Training examples from a JSON Lines file: inputs and targets."""

import enum
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from loramux_adapters.errors import PackageError, shown
from loramux_adapters.labels import ProblemType
from loramux_adapters.strict_json import parse_object

MAX_LINE_BYTES = 1 << 20


class Form(enum.StrEnum):
    """What a line has, in words; the same for all lines of a file."""

    PROMPTS = "prompt and completion"
    LABELLED = "text and label"
    PAIRS = "text, pair and label"
    SEVERAL = "text and labels"
    PAIRS_SEVERAL = "text, pair and labels"
    SCORED = "text and score"
    PAIRS_SCORED = "text, pair and score"
    TAGGED = "tokens and tags"
    QUESTIONS = "question, context and answer"

    @property
    def problem(self) -> ProblemType:
        """The problem type of a text's label or score."""
        if self in (Form.SEVERAL, Form.PAIRS_SEVERAL):
            return ProblemType.MULTI_LABEL
        is_number = self in (Form.SCORED, Form.PAIRS_SCORED)
        return ProblemType.REGRESSION if is_number else ProblemType.SINGLE_LABEL


FORMS: Mapping[frozenset[str], Form] = {
    frozenset({"prompt", "completion"}): Form.PROMPTS,
    frozenset({"text", "label"}): Form.LABELLED,
    frozenset({"text", "pair", "label"}): Form.PAIRS,
    frozenset({"text", "labels"}): Form.SEVERAL,
    frozenset({"text", "pair", "labels"}): Form.PAIRS_SEVERAL,
    frozenset({"text", "score"}): Form.SCORED,
    frozenset({"text", "pair", "score"}): Form.PAIRS_SCORED,
    frozenset({"tokens", "tags"}): Form.TAGGED,
    frozenset({"question", "context", "answer"}): Form.QUESTIONS,
}
"""Keys of a line -> its form; a question may also have a `start`."""

_WANTED = (
    'a line is {"prompt": "…", "completion": "…"}, {"text": "…", "label": "…"}, {"text": "…", '
    '"pair": "…", "label": "…"}, either of these with "labels": ["…"] or "score": 0.5 in place of '
    'the label, {"tokens": ["…"], "tags": ["…"]} or {"question": "…", "context": '
    '"…", "answer": "…"}, with texts that are not empty'
)


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt, and the completion to learn."""

    prompt: str
    completion: str
    line: int
    """Line number in the file, from 1."""


@dataclass(frozen=True, slots=True)
class Labelled:
    """A text or a pair of texts, with a label, a set of labels or a score."""

    text: str
    label: str | tuple[str, ...] | float
    """One label, all labels that apply, or a score."""
    line: int
    pair: str | None = None
    """The second text, if any."""


@dataclass(frozen=True, slots=True)
class Tagged:
    """The words of a text, with a tag for each."""

    tokens: tuple[str, ...]
    tags: tuple[str, ...]
    line: int


@dataclass(frozen=True, slots=True)
class Question:
    """A question, and the position of its answer in a context."""

    question: str
    context: str
    begin: int
    """First character of the answer in `context`, in code points."""
    end: int
    """First character after the answer; equal to `begin` if the context has no answer."""
    line: int


@dataclass(frozen=True, slots=True)
class Examples:
    """The examples of one file."""

    path: Path
    digest: str
    """SHA-256 of the file."""
    form: Form
    labels: tuple[str, ...]
    """The distinct labels or tags, sorted; empty for forms without."""
    examples: tuple[Example | Labelled | Tagged | Question, ...]

    def where(self, example: Example | Labelled | Tagged | Question) -> str:
        """Return how messages refer to one of `examples`."""
        return f"{self.path}, line {example.line}"


def read_examples(path: Path) -> Examples:
    """Read and validate the examples in `path`.

    Raises:
        PackageError: A line is not valid; the message has the file, the line and what is expected.
        OSError: The file cannot be read.
    """
    sha256 = hashlib.sha256()
    examples: list[Example | Labelled | Tagged | Question] = []
    labels: set[str] = set()
    form: Form | None = None
    with path.open("rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES + 1), b""), 1):
            sha256.update(line)
            where = f"{path}, line {number}"
            own, found = _fields(line, where)
            if form not in (None, own):
                raise _fault(
                    f"{where} has {own}, but the lines before have {form}; all lines of a file "
                    "must have the same keys"
                )
            form = own
            example = _example(found, number, where)
            examples.append(example)
            if isinstance(example, Labelled) and not isinstance(example.label, float):
                labels.update([example.label] if isinstance(example.label, str) else example.label)
            elif isinstance(example, Tagged):
                labels.update(example.tags)
    if form is None:
        raise _fault(f"{path} is empty; {_WANTED}")
    digest = f"sha256:{sha256.hexdigest()}"
    return Examples(path, digest, form, tuple(sorted(labels)), tuple(examples))


def _fields(line: bytes, where: str) -> tuple[Form, dict[str, object]]:
    """Return the form of a line and its fields; only those that have to be texts are validated."""
    if len(line) > MAX_LINE_BYTES:
        raise _fault(f"{where} is above {MAX_LINE_BYTES} bytes")
    try:
        found = parse_object(line, where)
    except ValueError as error:
        raise _fault(f"{error}; {_WANTED}") from None
    form = FORMS.get(frozenset(found))
    if form is None and "start" in found:
        form = FORMS.get(frozenset(found) - {"start"})
        form = form if form is Form.QUESTIONS else None
    if form is None:
        raise _fault(f"{where} has {_listed(found)}; {_WANTED}")
    for key, value in found.items():
        may_be = key in ("tokens", "tags", "start", "labels", "score") or (
            key == "answer" and value == ""
        )
        if not may_be and not _is_text(value):
            raise _fault(f"{where}: {key} is {shown(value)}; {_WANTED}")
    return form, found


def _example(
    found: Mapping[str, object], line: int, where: str
) -> Example | Labelled | Tagged | Question:
    if "tokens" in found:
        tokens, tags = (_texts(found[key], f"{where}: {key}") for key in ("tokens", "tags"))
        if len(tokens) != len(tags):
            raise _fault(
                f"{where} has {len(tokens)} tokens and {len(tags)} tags; expected one tag per token"
            )
        return Tagged(tokens, tags, line)
    texts = cast(Mapping[str, str], found)
    if "question" in found:
        begin = _begin(texts["context"], texts["answer"], found, where)
        end = begin + len(texts["answer"])
        return Question(texts["question"], texts["context"], begin, end, line)
    if "text" in found:
        return Labelled(texts["text"], _label(found, where), line, texts.get("pair"))
    return Example(texts["prompt"], texts["completion"], line)


def _label(found: Mapping[str, object], where: str) -> str | tuple[str, ...] | float:
    """Return the label, labels or score of a text."""
    if "score" in found:
        score = found["score"]
        if isinstance(score, bool) or not isinstance(score, int | float):
            raise _fault(f"{where}: score is {shown(score)}; expected a number")
        return float(score)
    if "labels" not in found:
        return cast(str, found["label"])
    labels = _texts(found["labels"], f"{where}: labels") if found["labels"] != [] else ()
    if len(set(labels)) < len(labels):
        raise _fault(f"{where}: labels is {shown(list(labels))}, which has a duplicate")
    return labels


def _begin(context: str, answer: str, found: Mapping[str, object], where: str) -> int:
    """Return where an answer begins: at `start`, or at its first occurrence."""
    if "start" not in found:
        first = context.find(answer)
        if first < 0:
            raise _fault(f"{where}: answer is {shown(answer)}, which is not in the context")
        return first
    begin = found["start"]
    if not isinstance(begin, int) or isinstance(begin, bool) or not 0 <= begin < len(context):
        raise _fault(
            f"{where}: start is {shown(begin)}; expected a position in the context, which has "
            f"{len(context)} characters"
        )
    there = context[begin : begin + len(answer)]
    if not answer or there != answer:
        raise _fault(
            f"{where}: answer is {shown(answer)}, but at start, {begin}, the context has "
            f"{shown(there)}; start counts characters (code points), and must be omitted if there "
            "is no answer"
        )
    return begin


def _texts(value: object, what: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or not all(map(_is_text, value)):
        raise _fault(f"{what} is {shown(value)}; {_WANTED}")
    return tuple(value)


def _is_text(value: object) -> bool:
    """Return whether `value` is a string that is not blank."""
    return isinstance(value, str) and bool(value.strip())


def _listed(keys: Iterable[str]) -> str:
    return f"the keys {shown(sorted(keys))}"


def _fault(message: str) -> PackageError:
    return PackageError(message, "INVALID_FIELD")
