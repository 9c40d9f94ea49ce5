"""Logits of begins and ends -> the answers that they speak for.

The numbers are those of transformers' pipeline `question-answering`: of `decode_spans` and
`select_starts_ends`, and of the way in which it adds up what several windows give.
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
    """Token of the whole pair that the first of the part is."""
    second_from: int
    """Where in `tokens` those of the second text begin, if that is told."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A question and its context as tokens."""

    text: str
    """The context."""
    read: TextPair
    """Both."""
    context: range
    """Where the tokens of the context are."""
    knows_words: bool
    """Whether the tokenizer parts the context into words."""
    tells_types: bool
    """Whether it is told which tokens are of the second text."""
    words: dict[int, Span] = field(default_factory=dict)
    """Word of the context -> its characters, of those that were looked for."""

    @staticmethod
    def of(text: str, read: TextPair, sequence: int, *, tells_types: bool = False) -> "Pair":
        """Return the pair whose context, `text`, is the first or the second `sequence`, 0 or 1."""
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
        """Tokens that are not of the context, and in every window."""
        return len(self.read.tokens) - len(self.context)

    def num_windows(self, max_tokens: int, overlap: int) -> int:
        """Return how many `windows` there are."""
        room = max_tokens - self.num_others
        if len(self.context) <= room:
            return 1
        return -(-(len(self.context) - overlap) // (room - overlap))

    def windows(self, max_tokens: int, overlap: int) -> Iterator[Window]:
        """Yield windows of at most `max_tokens`, each with `overlap` tokens of the one before it.

        Where not all fits in one, there have to be more tokens of the context in a window than
        that.
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
        """Return the characters of the context from one token to another.

        With `to_words` they are those of the whole words; where the context is one word to the
        tokenizer, which then knows nothing of words, it is as without.
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
        if word not in self.words:  # looking for it takes time that grows with the context
            sequence = self.read.places.token_to_sequence(token) or 0
            self.words[word] = self.read.places.word_to_chars(word, sequence) or self._chars(token)
        return self.words[word]


@dataclass(frozen=True, slots=True)
class Best:
    """How answers are chosen."""

    top_k: int
    max_tokens: int
    """Of an answer."""
    may_be_none: bool
    """Whether "no answer" is one."""
    to_words: bool

    def of(
        self, pair: Pair, windows: Sequence[Window], found: Sequence[bytes]
    ) -> question_answering_pb2.Answers:
        """Return the best answers for `pair`, in whose `windows` float32 logits are `found`."""
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
        """Return softmax over the tokens that can be begin, and over those that can be end.

        Like `table`, it is [tokens, 2].
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
        # The first token of all stands for no answer, even where it is of the context.
        start = max(context.start, 1)
        first, last = likely[start : context.stop].T
        scores, begins, ends = [np.empty(0)], [np.empty(0, int)], [np.empty(0, int)]
        least = 0.0  # so many as are wanted have this score or a higher one
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
