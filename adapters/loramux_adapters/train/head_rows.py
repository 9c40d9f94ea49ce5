"""Tokenization of examples for heads: input ids, and labels, tags or positions to learn."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from transformers import BatchEncoding, PreTrainedTokenizerBase

from loramux_adapters.errors import PackageError, shown
from loramux_adapters.train.examples import Examples, Labelled, Question, Tagged
from loramux_adapters.train.rows import IGNORED, Row, Value, check_length

_CONTEXT = 1
"""Sequence id of the context in a tokenized question and context."""


@dataclass(frozen=True, slots=True)
class HeadRows:
    """Turns examples into rows for a head; texts are tokenized as a server does it."""

    tokenizer: PreTrainedTokenizerBase
    max_tokens: int
    uses_token_types: bool = False
    """Whether the base gets token type ids, which mark the second text of a pair."""
    num_before: int = 0
    """Virtual token embeddings that PEFT puts before a text; the head has outputs for them, too."""

    def of(self, examples: Examples) -> list[Row]:
        """Return the rows of all examples, in order.

        Raises:
            PackageError: An example is too long, or no token belongs to its answer.
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
        if self.uses_token_types and example.pair is not None:
            row["token_type_ids"] = encoded["token_type_ids"]
        return row

    def _tagged(self, example: Tagged, tags: Sequence[int]) -> Row:
        """Return the row of words joined by spaces; the first token of each word has its tag."""
        encoded = self._placed(" ".join(example.tokens))
        labels = [IGNORED] * len(encoded["input_ids"])
        begin = 0
        for word, tag in zip(example.tokens, tags, strict=True):
            end = begin + len(word)
            first = next(_inside(encoded["offset_mapping"], begin, end), None)
            if first is not None:  # the tokenizer may drop all characters of a word
                labels[first] = tag
            begin = end + 1
        return {"input_ids": encoded["input_ids"], "labels": [IGNORED] * self.num_before + labels}

    def _answered(self, example: Question, where: str) -> Row:
        """Return the row of a question and a context; without an answer, the first token is it."""
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
                    f"{where}: answer is {shown(answer)}, for which the tokenizer gives no token",
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
                "tags and answers need a fast tokenizer (of the tokenizers library), which gives "
                "token offsets; that of the base is slow",
                "ADAPTER_BASE_MISMATCH",
            )
        return self.tokenizer(*texts, add_special_tokens=True, return_offsets_mapping=True)


def _target(label: str | tuple[str, ...] | float, numbers: Mapping[str, int]) -> Value:
    """Return what is learned: a label's index, a 0/1 vector over all labels, or a score."""
    if isinstance(label, float):
        return label
    return numbers[label] if isinstance(label, str) else [float(each in label) for each in numbers]


def _inside(places: Iterable[tuple[int, int]], begin: int, end: int) -> Iterator[int]:
    """Yield the tokens that overlap the characters from `begin` to `end`."""
    return (
        number
        for number, (first, last) in enumerate(places)
        if first < last and first < end and begin < last
    )
