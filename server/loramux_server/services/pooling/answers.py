"""Answer spans from start and end logits.

Scores equal those of transformers' `question-answering` pipeline: of `decode_spans` and
`select_starts_ends`, and of how it adds up several windows.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from loramux.v1 import question_answering_pb2
from loramux_server.services.texts import second_from
from loramux_server.text.tokenizer import Span, TextPair

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Window:
    """A part of a context, with the question."""

    tokens: list[int]
    context: range
    """Where in `tokens` the part is."""
    first: int
    """Index in the whole pair of the part's first token."""
    second_from: int
    """Index in `tokens` of the second text, if token types are used; else 0."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A tokenized question and context."""

    text: str
    """The context."""
    read: TextPair
    """The tokens of both."""
    context: range
    """Where the tokens of the context are."""
    knows_words: bool
    """Whether the tokenizer splits the context into words."""
    tells_types: bool
    """Whether token types are used."""
    words: dict[int, Span] = field(default_factory=dict)
    """Cache: index of a word in the context -> its characters."""

    @staticmethod
    def of(text: str, read: TextPair, sequence: int, *, tells_types: bool = False) -> "Pair":
        """Return the pair whose first or second text (`sequence` 0 or 1) is the context, `text`."""
        places = read.places
        own = [i for i, each in enumerate(places.sequence_ids) if each == sequence]
        if not own:
            return Pair(text, read, range(0), knows_words=False, tells_types=tells_types)
        first, last = (places.token_to_word(token) for token in (own[0], own[-1]))
        is_one_word = len(text.split(maxsplit=1)) < 2
        context, knows_words = range(own[0], own[-1] + 1), first != last or is_one_word
        return Pair(text, read, context, knows_words, tells_types)

    @property
    def num_others(self) -> int:
        """Tokens that are not of the context, and part of every window."""
        return len(self.read.tokens) - len(self.context)

    def num_windows(self, max_tokens: int, overlap: int) -> int:
        """Return the number of `windows`."""
        room = max_tokens - self.num_others
        if len(self.context) <= room:
            return 1
        return -(-(len(self.context) - overlap) // (room - overlap))

    def windows(self, max_tokens: int, overlap: int) -> Iterator[Window]:
        """Yield windows of at most `max_tokens`, which overlap by `overlap` tokens of the context.

        If there is more than one, a window must have room for more context than `overlap`.
        """
        ids, begin, end = self.read.tokens, self.context.start, self.context.stop
        second = second_from(self.read) if self.tells_types else 0
        if len(ids) <= max_tokens:
            yield Window(ids, self.context, begin, second)
            return
        room = max_tokens - self.num_others
        for first in range(begin, end, room - overlap):
            last = min(first + room, end)
            tokens = [*ids[:begin], *ids[first:last], *ids[end:]]
            left_out = len(ids) - len(tokens) if second > begin else 0
            yield Window(tokens, range(begin, begin + last - first), first, second - left_out)
            if last == end:
                return

    def place(self, begin: int, end: int, *, to_words: bool) -> Span:
        """Return the characters of the context from token `begin` to token `end`, inclusive.

        With `to_words` the span is extended to whole words, unless the tokenizer takes the context
        for a single word.
        """
        if not to_words or not self.knows_words:
            return self._chars(begin)[0], self._chars(end)[1]
        return self._word(begin)[0], self._word(end)[1]

    def _chars(self, token: int) -> Span:
        return self.read.places.token_to_chars(token) or (0, 0)

    def _word(self, token: int) -> Span:
        word = self.read.places.token_to_word(token)
        if word is None:
            return self._chars(token)
        if word not in self.words:  # the lookup takes time proportional to the context
            sequence = self.read.places.token_to_sequence(token) or 0
            self.words[word] = self.read.places.word_to_chars(word, sequence) or self._chars(token)
        return self.words[word]


@dataclass(frozen=True, slots=True)
class Best:
    """How answers are chosen."""

    top_k: int
    max_tokens: int
    """Maximum tokens of an answer."""
    may_be_none: bool
    """Whether "no answer" is a possible answer."""
    to_words: bool

    def of(
        self, pair: Pair, windows: Sequence[Window], found: Sequence[bytes]
    ) -> question_answering_pb2.Answers:
        """Return the best answers for `pair`; `found` has the logits of each window.

        They are float32, [tokens, 2]: start and end.
        """
        answers: list[question_answering_pb2.Answer] = []
        by_text: dict[str, question_answering_pb2.Answer] = {}
        none_score = 1.0
        for window, logits in zip(windows, found, strict=True):
            table = np.frombuffer(logits, np.float32).reshape(-1, 2)
            likely = self._likely(table, window.context)
            none_score = min(none_score, float(likely[0].prod()))
            for score, begin, end in self._spans(likely, window.context):
                shift = window.first - window.context.start
                place = pair.place(begin + shift, end + shift, to_words=self.to_words)
                text = pair.text[slice(*place)]
                same = by_text.get(text.lower())
                if same is not None:
                    same.score += score
                    continue
                answer = question_answering_pb2.Answer(
                    score=score, begin=place[0], end=place[1], text=text
                )
                by_text[text.lower()] = answer
                answers.append(answer)
        if self.may_be_none:
            answers.append(question_answering_pb2.Answer(score=none_score, is_impossible=True))
        answers.sort(key=lambda answer: -answer.score)
        return question_answering_pb2.Answers(
            answers=answers[: self.top_k], num_windows=len(windows)
        )

    def _likely(self, table: npt.NDArray[np.float32], context: range) -> Float64:
        """Return the start and end probabilities of tokens, [tokens, 2], from their logits `table`.

        Only tokens of the context count, and token 0 if there may be no answer.
        """
        can_be = np.zeros(len(table), bool)
        can_be[context.start : context.stop] = True
        can_be[0] |= self.may_be_none
        wide: Float64 = np.where(can_be[:, None], table.astype(np.float64), -np.inf)
        power = np.exp(wide - wide.max(axis=0))
        likely: Float64 = power / power.sum(axis=0)
        return likely

    def _spans(self, likely: Float64, context: range) -> list[tuple[float, int, int]]:
        """Return the best answers as (score, first token, last token), highest score first."""
        # Token 0 stands for "no answer", even if it is part of the context.
        start = max(context.start, 1)
        first, last = likely[start : context.stop].T
        scores, begins, ends = [np.empty(0)], [np.empty(0, int)], [np.empty(0, int)]
        least = 0.0  # top_k spans score at least this, once so many are known
        for length in range(min(self.max_tokens, len(first))):
            product = first[: len(first) - length] * last[length:]
            best = np.flatnonzero(product >= least)
            if len(best) > self.top_k:
                best = best[np.argpartition(-product[best], self.top_k)[: self.top_k]]
            if len(best) == self.top_k:
                least = float(product[best].min())
            scores.append(product[best])
            begins.append(best)
            ends.append(best + length)
        score = np.concatenate(scores)
        kept = score >= least
        score, begin, end = score[kept], np.concatenate(begins)[kept], np.concatenate(ends)[kept]
        order = np.lexsort((end, begin, -score))[: self.top_k]
        return [
            (float(score[i]), start + int(begin[i]), start + int(end[i])) for i in order.tolist()
        ]
