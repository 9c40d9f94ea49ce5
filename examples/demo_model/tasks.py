"""The tasks of the demo model, as functions from a text to its answer.

A task has a name, a sampler of texts and a function that gives the right answer. One word in
ten, and one sentence in ten, is held out: no training example contains it. Which ones depends
only on a hash of the text.
"""

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

from . import sentences

LETTERS = "abcdefghijklmnopqrstuvwxyz"
LABELS = ("negative", "positive")
IRREGULAR = {
    "calf": "calves", "child": "children", "foot": "feet", "goose": "geese", "half": "halves",
    "knife": "knives", "leaf": "leaves", "life": "lives", "loaf": "loaves", "man": "men",
    "mouse": "mice", "person": "people", "self": "selves", "shelf": "shelves",
    "thief": "thieves", "tooth": "teeth", "wife": "wives", "wolf": "wolves", "woman": "women",
}  # fmt: skip


def reverse(text: str) -> str:
    """The letters from last to first: ``abandon`` gives ``nodnaba``."""
    return text[::-1]


def upper(text: str) -> str:
    """Capital letters: ``abandon`` gives ``ABANDON``."""
    return text.upper()


def sort(text: str) -> str:
    """The letters in alphabetical order: ``abandon`` gives ``aabdnno``."""
    return "".join(sorted(text))


def double(text: str) -> str:
    """Every letter twice: ``cat`` gives ``ccaatt``."""
    return "".join(letter * 2 for letter in text)


def spell(text: str) -> str:
    """The letters with hyphens between them: ``cat`` gives ``c-a-t``."""
    return "-".join(text)


def mask(text: str) -> str:
    """A star for every vowel: ``abandon`` gives ``*b*nd*n``."""
    return re.sub("[aeiou]", "*", text)


def following(text: str) -> str:
    """The next letter of the alphabet for each letter: ``cat`` gives ``dbu``."""
    return _shift(text, 1)


def caesar(text: str) -> str:
    """Each letter moved three places on in the alphabet: ``cat`` gives ``fdw``."""
    return _shift(text, 3)


def rotate(text: str) -> str:
    """The first letter moved to the end: ``cat`` gives ``atc``."""
    return text[1:] + text[0]


def piglatin(text: str) -> str:
    """Pig Latin: ``string`` gives ``ingstray`` and ``apple`` gives ``appleway``."""
    found = re.match(r"(?:qu|y|[^aeiouyq]+qu|[^aeiouy]+)", text)
    start = found.group() if found else ""
    return f"{text[len(start) :]}{start or 'w'}ay"


def plural(text: str) -> str:
    """The plural by the rules of English spelling: ``city`` gives ``cities``."""
    if text in IRREGULAR:
        return IRREGULAR[text]
    if re.search(r"[^aeiou]y$", text):
        return text[:-1] + "ies"
    return text + ("es" if re.search(r"(?:s|x|z|ch|sh)$", text) else "s")


def acronym(text: str) -> str:
    """The first letter of every word, as capitals: ``the red lamp`` gives ``TRL``."""
    return "".join(word[0].upper() for word in text.split())


def last(text: str) -> str:
    """The last word of a sentence: ``the red lamp`` gives ``lamp``."""
    return text.split()[-1]


def title(text: str) -> str:
    """A capital at the start of every word: ``the red lamp`` gives ``The Red Lamp``."""
    return text.title()


def sentiment(text: str) -> str:
    """Whether an opinion is ``positive`` or ``negative``."""
    return LABELS[sentences.is_positive(text)]


def _shift(text: str, places: int) -> str:
    """The text with each letter moved on in the alphabet, from z round to a."""
    return "".join(LETTERS[(LETTERS.index(letter) + places) % 26] for letter in text)


def _fraction(text: str) -> float:
    """A number from 0 to 1 that depends on the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") / 2**32


WORDS = frozenset(Path(__file__).with_name("words.txt").read_text(encoding="ascii").split())
NOUNS = frozenset(word for word in WORDS if word in IRREGULAR or plural(word) in WORDS)
HELD_OUT_WORDS = frozenset(
    word
    for word in WORDS - sentences.vocabulary() - IRREGULAR.keys() - set(LABELS)
    if _fraction(word) < 0.1
)
TRAINING_WORDS = sorted(WORDS - HELD_OUT_WORDS)
TRAINING_NOUNS = sorted(NOUNS - HELD_OUT_WORDS)


def may_train(text: str) -> bool:
    """Whether a text is free of held-out words and is not itself a held-out sentence."""
    if " " in text and _fraction(text) < 0.1:
        return False
    return HELD_OUT_WORDS.isdisjoint(re.findall("[a-z]+", text.lower()))


def word(rng: Random) -> str:
    """A word for training; sometimes a string of letters that is not a word."""
    if rng.random() < 0.3:
        return "".join(rng.choices(LETTERS, k=rng.randint(3, 10)))
    return rng.choice(TRAINING_WORDS)


def noun(rng: Random) -> str:
    """A word for training that takes a plural; irregular ones come up more often."""
    return rng.choice(sorted(IRREGULAR) if rng.random() < 0.1 else TRAINING_NOUNS)


def sentence(rng: Random) -> str:
    """A statement for training, or a meaningless sequence of words."""
    if rng.random() < 0.5:
        return sentences.statement(rng)
    return " ".join(rng.choices(TRAINING_WORDS, k=rng.randint(2, 6)))


@dataclass(frozen=True)
class Task:
    """A task: how to sample a text for training, and how to answer any text."""

    name: str
    draw: Callable[[Random], str]
    answer: Callable[[str], str]

    @property
    def description(self) -> str:
        """Description of the task, in one line."""
        return (self.answer.__doc__ or "").splitlines()[0].replace("``", '"')

    def example(self, rng: Random) -> tuple[str, str]:
        """A text and its answer, neither of which contains held-out words."""
        while True:
            text = self.draw(rng)
            answer = self.answer(text)
            if may_train(text) and may_train(answer):
                return text, answer

    def held_out(self, count: int) -> list[tuple[str, str]]:
        """The first texts that are held out, in a fixed random order, with their answers."""
        found: dict[str, str] = {}
        for text in self._held_out_texts():
            answer = self.answer(text)
            if answer != text:
                found[text] = answer
            if len(found) == count:
                break
        return list(found.items())

    def _held_out_texts(self) -> Iterator[str]:
        if self.draw in (word, noun):
            known = sorted(HELD_OUT_WORDS & (WORDS if self.draw is word else NOUNS))
            yield from Random(self.name).sample(known, len(known))
            return
        rng = Random(self.name)
        make = sentences.opinion if self.draw is sentences.opinion else sentences.statement
        while True:
            text = make(rng)
            if not may_train(text):
                yield text


TASKS = {
    task.name: task
    for task in (
        Task("reverse", word, reverse),
        Task("upper", word, upper),
        Task("sort", word, sort),
        Task("double", word, double),
        Task("spell", word, spell),
        Task("mask", word, mask),
        Task("following", word, following),
        Task("caesar", word, caesar),
        Task("rotate", word, rotate),
        Task("piglatin", word, piglatin),
        Task("plural", noun, plural),
        Task("acronym", sentence, acronym),
        Task("last", sentence, last),
        Task("title", sentence, title),
        Task("sentiment", sentences.opinion, sentiment),
    )
}
