"""Texts that are followed without a model."""

from benchmarks.drafted_texts import Text, Texts, follow
from loramux_server.engine.ends import Ends
from loramux_server.engine.speculation import Speculation

ENDS = Ends(1 << 30, frozenset())


def codes(text: str) -> list[int]:
    return [ord(character) for character in text]


def test_what_is_written_again_takes_few_steps() -> None:
    texts = [Text(f"{number}:", "a label that is always the same.") for number in range(8)]
    found = follow("labels", texts, codes, Speculation(16, ENDS), 0.05)
    assert found.tokens_per_step > 8
    assert found.time < 0.3


def test_without_drafts_each_token_is_a_step() -> None:
    make = Texts().kinds()
    texts = [make[kind]() for kind in make]
    found = follow("all", texts, codes, Speculation(0, ENDS), 0.05)
    assert (found.tokens_per_step, found.drafted_per_step, found.time) == (1, 0, 1)
    drafted = follow("all", texts, codes, Speculation(8, ENDS), 0.05)
    assert drafted.time < 1 < drafted.tokens_per_step
