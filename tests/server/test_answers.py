"""Answers in texts, of logits that are given: those of transformers' pipeline."""

import random
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from loramux.errors import InvalidArgumentError
from loramux.v1 import question_answering_pb2
from loramux_server.services.pooling.answers import Best, Pair
from loramux_server.services.pooling.question_limits import (
    MAX_WINDOW_TOKENS,
    MAX_WINDOWS,
    WindowSize,
    check_request,
    size_of,
    windows_of,
)
from loramux_server.text.tokenizer import TextTokenizer
from tests.support.models import byte_tokenizer
from tests.support.questions import pipeline_answers

QUESTION = "Who left the naïve city 🙂?"
CONTEXT = "Ann left the city in May.  Bob left it, too: the 🙂 city was naïve, and ann was not."


def word_tokenizer(*, separates: bool) -> PreTrainedTokenizerFast:
    """Return a tokenizer of characters that knows words, and may put `<s>` between texts."""
    alphabet = sorted({*QUESTION, *CONTEXT} - {" "})
    vocab = {"<s>": 0, "<unk>": 1} | {each: 2 + i for i, each in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<s>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair=f"<s> $A{' <s>' * separates} $B", special_tokens=[("<s>", 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>")


def logits_of(ids: Sequence[int]) -> torch.Tensor:
    """Return logits that depend on every token of a window."""
    generator = torch.Generator().manual_seed(hash(tuple(ids)) % (1 << 31))
    return 3 * torch.randn(len(ids), 2, generator=generator)


def check(tokenizer: PreTrainedTokenizerFast, **options: Any) -> None:
    text = TextTokenizer(tokenizer.backend_tokenizer.to_str())
    is_first = options.get("context_first", False)
    texts = (CONTEXT, QUESTION) if is_first else (QUESTION, CONTEXT)
    encoding = text.encode_pair(texts, ("a", "b"), parse_special=False, add_special=True)
    request = question_answering_pb2.AnswerRequest(
        **{name: value for name, value in options.items() if "window" in name}
    )
    pair = Pair.of(CONTEXT, encoding, 0 if is_first else 1)
    size = size_of(request, cast(Any, SimpleNamespace(context_length=4096)))
    (windows,) = windows_of([pair], size)
    best = Best(
        top_k=options.get("top_k", 1),
        max_tokens=options.get("max_answer_tokens", 15),
        may_be_none=options.get("handle_impossible_answer", False),
        to_words=options.get("align_to_words", True),
    )
    found = [logits_of(window.tokens).numpy().tobytes() for window in windows]
    wanted = pipeline_answers(logits_of, tokenizer, QUESTION, CONTEXT, **options)
    answers = best.of(pair, windows, found)
    assert answers.num_windows == len(windows)
    assert [(each.begin, each.end, each.text) for each in answers.answers] == [
        (each.begin, each.end, each.text) for each in wanted
    ]
    assert [each.score for each in answers.answers] == pytest.approx(
        [each.score for each in wanted], rel=1e-9
    )
    assert [each.is_impossible for each in answers.answers] == [not each.text for each in wanted]


@pytest.mark.parametrize("separates", [False, True])
def test_answers_are_those_of_the_pipeline(separates: bool) -> None:
    tokenizer = word_tokenizer(separates=separates)
    rng = random.Random(0)
    check(tokenizer)
    for _ in range(60):
        options: dict[str, Any] = {
            "top_k": rng.choice([1, 2, 5, 40]),
            "max_answer_tokens": rng.choice([1, 3, 15, 200]),
            "handle_impossible_answer": rng.random() < 0.5,
            "align_to_words": rng.random() < 0.5,
            "context_first": rng.random() < 0.5,
        }
        # The pipeline breaks off a word at the edge of a window.
        if rng.random() < 0.6 and not options["align_to_words"]:
            options["max_window_tokens"] = rng.choice([40, 51, 64, 200])
            if rng.random() < 0.5:
                options["window_overlap_tokens"] = rng.choice([0, 1, 7])
            elif options["max_window_tokens"] < 51:
                options["window_overlap_tokens"] = 3
        check(tokenizer, **options)


def test_words_are_whole_at_the_edge_of_a_window() -> None:
    text = TextTokenizer(word_tokenizer(separates=False).backend_tokenizer.to_str())
    encoding = text.encode_pair(
        ("Who?", CONTEXT), ("a", "b"), parse_special=False, add_special=True
    )
    pair = Pair.of(CONTEXT, encoding, 1)
    windows = list(pair.windows(10, 0))
    assert [pair.text[slice(*pair.place(w.first, w.first, to_words=False))] for w in windows][
        :3
    ] == ["A", "f", "c"]
    logits = np.zeros((len(windows[1].tokens), 2), np.float32)
    logits[windows[1].context.start] = 20
    best = Best(top_k=1, max_tokens=15, may_be_none=False, to_words=True)
    (answer,) = best.of(pair, [windows[1]], [logits.tobytes()]).answers
    assert (answer.text, answer.begin, answer.end) == ("left", 4, 8)


def test_a_tokenizer_that_knows_no_words_leaves_answers_as_they_are() -> None:
    text = TextTokenizer(byte_tokenizer().backend_tokenizer.to_str())
    encoding = text.encode_pair(("a", "né 🙂 x"), ("a", "b"), parse_special=False, add_special=True)
    pair = Pair.of("né 🙂 x", encoding, 1)
    first = pair.context.start
    assert pair.place(first + 1, first + 2, to_words=True) == (1, 2)  # the two bytes of é
    assert pair.place(first + 4, first + 4, to_words=True) == (3, 4)  # one of those of 🙂
    encoding = text.encode_pair(("a", "née"), ("a", "b"), parse_special=False, add_special=True)
    pair = Pair.of("née", encoding, 1)
    assert pair.place(first + 1, first + 2, to_words=True) == (0, 3)
    assert pair.place(first + 1, first + 2, to_words=False) == (1, 2)


def test_a_token_that_stands_for_no_answer_is_none() -> None:
    # Nothing stands before the context, whose first token is so the first of all.
    text = TextTokenizer(byte_tokenizer().backend_tokenizer.to_str())
    encoding = text.encode_pair(("ab", "q"), ("a", "b"), parse_special=False, add_special=False)
    pair = Pair.of("ab", encoding, 0)
    (window,) = pair.windows(10, 2)
    logits = np.array([[9, 9], [1, 1], [5, 5]], np.float32).tobytes()
    best = Best(top_k=5, max_tokens=5, may_be_none=False, to_words=False)
    (answer,) = best.of(pair, [window], [logits]).answers
    assert (answer.begin, answer.end, answer.text) == (1, 2, "b")
    encoding = text.encode_pair(("a", "q"), ("a", "b"), parse_special=False, add_special=False)
    pair = Pair.of("a", encoding, 0)
    assert not best.of(pair, list(pair.windows(10, 2)), [logits[8:]]).answers


def test_what_does_not_fit_is_refused() -> None:
    text = TextTokenizer(byte_tokenizer().backend_tokenizer.to_str())

    def pair(question: int, context: int) -> Pair:
        texts = ("q" * question, "c" * context)
        encoding = text.encode_pair(texts, ("a", "b"), parse_special=False, add_special=True)
        return Pair.of(texts[1], encoding, 1)

    whole, parts = WindowSize(30, 0, is_asked_for=False), WindowSize(30, 10, is_asked_for=True)
    assert [len(each) for each in windows_of([pair(10, 20)], whole)] == [1]
    pairs = [pair(10, 20), pair(10, 21), pair(19, 30)]
    assert [len(each) for each in windows_of(pairs, parts)] == [1, 2, 20]
    with pytest.raises(
        InvalidArgumentError, match="has 31 tokens, 21 of them of the con"
    ) as caught:
        windows_of([pair(10, 20), pair(10, 21)], whole)
    assert (caught.value.reason, caught.value.field) == (
        "CONTEXT_LENGTH_EXCEEDED", "inputs[1].context",
    )  # fmt: skip
    with pytest.raises(InvalidArgumentError, match="that leaves 10 of max_window_tok") as caught:
        windows_of([pair(20, 20)], parts)
    assert caught.value.field == "inputs[0].question"
    with pytest.raises(InvalidArgumentError, match=r"overlap_tokens, 12, the default$"):
        windows_of([pair(20, 20)], WindowSize(30, 12, is_asked_for=True, has_default_overlap=True))


def bytes_pair(num_others: int, context: int) -> Pair:
    """Return a pair of so many tokens, of which those of the question are `num_others`."""
    text = TextTokenizer(byte_tokenizer().backend_tokenizer.to_str())
    texts = ("q" * num_others, ("c " * context)[:context])
    encoding = text.encode_pair(texts, ("a", "b"), parse_special=False, add_special=False)
    return Pair.of(texts[1], encoding, 1)


@pytest.mark.parametrize(
    ("num_others", "context", "max_tokens", "overlap"),
    [(3990, 10, 4096, 128), (4, 2, 10, 9), (4, 2, 10, 6), (4, 6, 10, 5), (2, 8, 10, 8)],
)
def test_what_fits_is_one_window_whatever_the_overlap(
    num_others: int, context: int, max_tokens: int, overlap: int
) -> None:
    pair = bytes_pair(num_others, context)
    size = WindowSize(max_tokens, overlap, is_asked_for=True)
    ((window,),) = windows_of([pair], size)
    assert window.tokens == pair.read.tokens
    assert (window.context, window.first) == (pair.context, num_others)


def test_windows_are_as_many_as_are_counted() -> None:
    for context in (1, 5, 6, 7, 8, 9, 40):
        pair = bytes_pair(4, context)
        for max_tokens in range(5, 14):
            for overlap in range(max_tokens - 4):
                count = pair.num_windows(max_tokens, overlap)
                assert count == len(list(pair.windows(max_tokens, overlap)))


@pytest.mark.parametrize(
    ("context", "size", "message"),
    [
        (10 + MAX_WINDOWS + 1, WindowSize(30, 10, is_asked_for=True), f"at most {MAX_WINDOWS} in"),
        (20_000, WindowSize(16_384, 16_320, is_asked_for=True), f"at most {MAX_WINDOW_TOKENS} in"),
    ],
)
def test_windows_that_are_too_many_are_never_made(
    monkeypatch: pytest.MonkeyPatch, context: int, size: WindowSize, message: str
) -> None:
    pair = bytes_pair(19, context)
    monkeypatch.setattr(Pair, "windows", lambda *_: pytest.fail("they were made"))
    with pytest.raises(InvalidArgumentError, match=message):
        windows_of([pair], size)


def test_no_word_is_looked_for_twice() -> None:
    text = TextTokenizer(word_tokenizer(separates=False).backend_tokenizer.to_str())
    read = text.encode_pair(("Who?", CONTEXT), ("a", "b"), parse_special=False, add_special=True)
    looked_for = []

    class Counted:
        def __getattr__(self, name: str) -> Any:
            return getattr(read.places, name)

        def word_to_chars(self, word: int, sequence: int) -> Any:
            looked_for.append(word)
            return read.places.word_to_chars(word, sequence)

    pair = Pair.of(CONTEXT, read._replace(places=cast(Any, Counted())), 1)
    windows = list(pair.windows(20, 13))
    found = [logits_of(window.tokens).numpy().tobytes() for window in windows]
    best = Best(top_k=40, max_tokens=15, may_be_none=False, to_words=True)
    assert len(best.of(pair, windows, found).answers) == 40
    assert len(looked_for) == len(set(looked_for)) > 5


@pytest.mark.parametrize(
    ("fields", "field", "message"),
    [
        ({"top_k": 0}, "top_k", "1 to 100"),
        ({"max_answer_tokens": 513}, "max_answer_tokens", "1 to 512"),
        ({"max_window_tokens": 1}, "max_window_tokens", "2 to 4096"),
        ({"max_window_tokens": 4097}, "max_window_tokens", "2 to 4096"),
        ({"window_overlap_tokens": 3}, "window_overlap_tokens", "none without max_window_tok"),
        ({"max_window_tokens": 9, "window_overlap_tokens": 9}, "window_overlap_tokens", "0 to 8"),
    ],
)
def test_numbers_out_of_their_range_are_refused(
    fields: dict[str, int], field: str, message: str
) -> None:
    inputs = [question_answering_pb2.QuestionInput(question="a", context="b")]
    request = question_answering_pb2.AnswerRequest(adapter="a", inputs=inputs, **cast(Any, fields))
    model = cast(Any, SimpleNamespace(context_length=4096, tokenizer_json="{}"))
    with pytest.raises(InvalidArgumentError, match=message) as caught:
        check_request(request, model)
    assert caught.value.field == field
