"""Examples for heads as tokens: what is read, and the labels, tags or places that are learned."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from transformers import BatchEncoding, PreTrainedTokenizerBase

from loramux_adapters.errors import PackageError, shown
from loramux_adapters.train.examples import Examples, Labelled, Question, Tagged
from loramux_adapters.train.rows import IGNORED, Row, Value, check_length

_CONTEXT = 1
"""Which of two texts that are read together the context of a question is."""


@dataclass(frozen=True, slots=True)
class HeadRows:
    """Makes rows for a head; texts become the tokens that a server makes of them."""

    tokenizer: PreTrainedTokenizerBase
    max_tokens: int
    tells_types: bool = False
    """Whether the base is told which tokens of a pair are of the second text."""
    num_before: int = 0
    """Embeddings of virtual tokens that PEFT puts before a text, of which the model tells too."""

    def of(self, examples: Examples) -> list[Row]:
        """Return each example as tokens, with the numbers that are learned.

        Raises:
            PackageError: An example is too long, or no token is of an answer.
        """
        numbers = {label: number for number, label in enumerate(examples.labels)}
        rows: list[Row] = []
        for example in examples.examples:
            where = examples.where(example)
            if isinstance(example, Labelled):
                row = self._labelled(example, _target(example.label, numbers))
            elif isinstance(example, Tagged):
                row = self._tagged(example, [numbers[tag] for tag in example.tags])
            else:
                assert isinstance(example, Question)
                row = self._answered(example, where)
            assert isinstance(row["input_ids"], list)
            check_length(len(row["input_ids"]), self.max_tokens, where, "tokens")
            rows.append(row)
        return rows

    def _labelled(self, example: Labelled, label: Value) -> Row:
        encoded = self.tokenizer(example.text, example.pair, add_special_tokens=True)
        row: Row = {"input_ids": encoded["input_ids"], "labels": label}
        if self.tells_types and example.pair is not None:
            row["token_type_ids"] = encoded["token_type_ids"]
        return row

    def _tagged(self, example: Tagged, tags: Sequence[int]) -> Row:
        """Return a text of words with spaces between them: the first token of each learns."""
        encoded = self._placed(" ".join(example.tokens))
        labels = [IGNORED] * len(encoded["input_ids"])
        begin = 0
        for word, tag in zip(example.tokens, tags, strict=True):
            end = begin + len(word)
            first = next(_inside(encoded["offset_mapping"], begin, end), None)
            if first is not None:  # of characters that a tokenizer leaves out there is none
                labels[first] = tag
            begin = end + 1
        return {"input_ids": encoded["input_ids"], "labels": [IGNORED] * self.num_before + labels}

    def _answered(self, example: Question, where: str) -> Row:
        """Return a question and a context; no answer is at the first token."""
        encoded = self._placed(example.question, example.context)
        first = last = 0
        if example.end > example.begin:
            of_context = [
                place if sequence == _CONTEXT else (0, 0)
                for place, sequence in zip(
                    encoded["offset_mapping"], encoded.sequence_ids(), strict=True
                )
            ]
            inside = list(_inside(of_context, example.begin, example.end))
            if not inside:
                answer = example.context[example.begin : example.end]
                raise PackageError(
                    f"{where}: answer is {shown(answer)}, of which the tokenizer makes no token",
                    "INVALID_FIELD",
                )
            first, last = inside[0], inside[-1]
        return {
            "input_ids": encoded["input_ids"],
            "start_positions": self.num_before + first,
            "end_positions": self.num_before + last,
        }

    def _placed(self, *texts: str) -> BatchEncoding:
        if not self.tokenizer.is_fast:
            raise PackageError(
                "the tokenizer of the base, which is none of the tokenizers library, does not tell "
                "where in a text a token is, as tags and answers need it",
                "ADAPTER_BASE_MISMATCH",
            )
        return self.tokenizer(*texts, add_special_tokens=True, return_offsets_mapping=True)


def _target(label: str | tuple[str, ...] | float, numbers: Mapping[str, int]) -> Value:
    """Return what is learned: a label's number, for each label whether it holds, or a number."""
    if isinstance(label, float):
        return label
    return numbers[label] if isinstance(label, str) else [float(each in label) for each in numbers]


def _inside(places: Iterable[tuple[int, int]], begin: int, end: int) -> Iterator[int]:
    """Yield the tokens that have characters from `begin` to `end`."""
    return (
        number
        for number, (first, last) in enumerate(places)
        if first < last and first < end and begin < last
    )
