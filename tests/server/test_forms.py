"""Forms that a text must have, and the process that follows them: whatever they are, it goes on."""

import json
import random
import re
import resource
import signal
import time
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from loramux_server.forms.form import Form, FormKind
from loramux_server.forms.form_blocklist import MAX_BLOCKED, FormBlocklist
from loramux_server.forms.forms import Forms
from loramux_server.forms.messages import Setup
from tests.support.demo import DEMO
from tests.support.models import byte_tokenizer
from tests.support.templates import chat_tokenizer
from tests.support.texts import (
    Texts,
    allowed,
    choice,
    grammar,
    number_tokenizer,
    schema,
    setup_of,
    worker,
)

DIGITS = Form(FormKind.REGEX, "[0-9]{3}")
AMBIGUOUS = Form(FormKind.GRAMMAR, 'start: s\ns: s s s | s s | "a" | "b" | "c" | " " | ""')
A, ONE, QUOTE = byte_tokenizer()('a1"').input_ids[-3:]


@pytest.fixture(scope="module")
def texts() -> Iterator[Texts]:
    texts = Texts(setup_of(byte_tokenizer(), cpu_seconds=0.3))
    yield texts
    texts.forms.close()


# What is written


def test_whatever_is_chosen_the_text_has_the_form(texts: Texts) -> None:
    tokenizer = byte_tokenizer()
    wanted = schema(
        {
            "type": "object",
            "properties": {
                "name": {"type": "string", "maxLength": 4},
                "age": {"type": "integer", "minimum": 0, "maximum": 150},
                "kind": {"enum": ["a", "</s>", 'q"']},
                "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2},
            },
            "required": ["name", "age", "kind"],
            "additionalProperties": False,
        }
    )
    written = 0
    for seed in range(30):
        tokens = texts.write(wanted, seed)
        if tokens is None:
            continue
        written += 1
        found = json.loads(tokenizer.decode(tokens))
        assert {"name", "age", "kind"} <= set(found) <= {"name", "age", "kind", "tags"}
        assert isinstance(found["name"], str) and len(found["name"]) <= 4
        assert type(found["age"]) is int and 0 <= found["age"] <= 150
        assert found["kind"] in ("a", "</s>", 'q"')
        assert all(type(tag) is bool for tag in found.get("tags", []))
        assert len(found.get("tags", [])) <= 2
    assert written > 25


@pytest.mark.parametrize("pattern", [
    r"[0-9]{2,4}-[a-f]+", r"(a|bc)*d?", r"\d{3}|[é€]{2}", "a/b\nc", r"</s>|<s>", r"[^a]{3}", "",
])  # fmt: skip
def test_a_regular_expression_matches_as_in_python(texts: Texts, pattern: str) -> None:
    for seed in range(5):
        tokens = texts.write(Form(FormKind.REGEX, pattern), seed)
        assert tokens is not None
        assert re.fullmatch(pattern, byte_tokenizer().decode(tokens))


ODD = [
    "yes",
    "a b",
    " lead",
    "é€😀",
    "</s>",
    "<think>",
    "a/b\\c",
    "(?i)x|[",
    "user us",
    "\t\n",
    '"',
]


def scored_tokenizer() -> PreTrainedTokenizerFast:
    """Return one whose pieces have scores, as SentencePiece makes them by default."""
    pieces = ["<unk>", "</s>", "▁", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += [*map(chr, range(33, 127)), "us", "▁us", "think", "yes", "</"]
    scores = [(piece, -float(i)) for i, piece in enumerate(pieces)]
    tokenizer = Tokenizer(models.Unigram(scores, unk_id=0, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    tokenizer.add_special_tokens(["<unk>", "</s>"])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>")


@pytest.mark.parametrize("kind", ["bytes", "words", "spaces", "scores", "demo"])
def test_tokens_of_every_kind_make_the_text(kind: str) -> None:
    if kind == "demo":
        tokenizer = AutoTokenizer.from_pretrained(DEMO / "base")
    elif kind == "scores":
        tokenizer = scored_tokenizer()
    else:
        tokenizer = chat_tokenizer(kind)
    if kind in ("words", "spaces", "scores"):
        # As that of Llama 2 is.
        tokenizer.backend_tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        )
    texts = Texts(setup_of(tokenizer))
    try:
        for text in ODD:
            tokens = texts.write(choice(text), 0)
            assert tokens is not None
            # After another, as behind a prompt: at its beginning some leave a space out.
            before = tokenizer("x", add_special_tokens=False).input_ids
            assert tokenizer.decode([*before, *tokens])[len(tokenizer.decode(before)) :] == text
            assert not set(tokens) & set(tokenizer.all_special_ids)
        seen = {tokenizer.decode(texts.write(choice("ab", "c"), seed) or []) for seed in range(12)}
        assert seen == {"ab", "c"}
    finally:
        texts.forms.close()


@pytest.mark.parametrize("is_alone", [True, False])
def test_tokens_that_are_decoded_as_those_of_t5_make_the_text(is_alone: bool) -> None:
    tokenizer = scored_tokenizer()
    decoder = decoders.Metaspace(prepend_scheme="always")
    tokenizer.backend_tokenizer.decoder = decoder if is_alone else decoders.Sequence([decoder])
    texts = Texts(setup_of(tokenizer))
    try:
        # Pieces that are called like bytes are none here, as those of mT5.
        for text in ("yes", "us us", '{"a": [1, 2]}', "A"):
            for seed in range(8):
                assert tokenizer.decode(texts.write(choice(text), seed) or []) == text
    finally:
        texts.forms.close()


def test_the_end_may_come_where_the_form_may_end_and_has_to_where_nothing_follows(
    texts: Texts,
) -> None:
    key, found = texts.begin(Form(FormKind.REGEX, "ab?"))
    (a,) = allowed(found)
    found = texts.advance(key, a)
    assert texts.end in allowed(found) and len(allowed(found)) == 2
    (b,) = set(allowed(found)) - {texts.end}
    assert allowed(texts.advance(key, b)) == [texts.end]


# What is refused

NOTHING_LIKE_IT = [
    (Form(FormKind.REGEX, "("), "unclosed group"),
    (Form(FormKind.REGEX, "(?=a)b"), "look-around"),
    (Form(FormKind.REGEX, r"(a)\1"), "backreferences are not supported"),
    (Form(FormKind.REGEX, r"[^\s\S]"), "no text can match"),
    (Form(FormKind.REGEX, "(" * 1000 + ")" * 1000), "250"),
    (schema({"type": "wrong"}), "wrong"),
    (schema({"type": "array", "uniqueItems": True}), "uniqueItems"),
    (schema({"allOf": [{"type": "string"}, {"type": "integer"}]}), "Unsatisfiable"),
    (schema({"$ref": "#"}), "no text can match"),
    (schema({"$ref": "http://127.0.0.1:9/schema.json"}), "does not fetch"),
    (schema({"$ref": "file:///etc/passwd"}), "does not fetch"),
    (grammar("start: other"), "other"),
    (grammar('other: "a"'), "start"),
    (grammar('start: "a'), ""),
    (grammar("start: / "), ""),
    (grammar("start: start"), "no text can match"),
]


@pytest.mark.parametrize(("form", "why"), NOTHING_LIKE_IT)
def test_what_is_no_form_is_refused_in_one_line(texts: Texts, form: Form, why: str) -> None:
    _, found = texts.begin(form)
    assert (found.allowed, found.reason) == (None, "INVALID_FIELD")
    assert why in found.why
    assert 0 < len(found.why) <= 200 and "\n" not in found.why


CONTROLS = [
    'start: <[0]> "a"', 'start: <[1]> "x"', "start: <[*]>", 'start: "a" <[1]>', "start: <[0-2]>*",
    'start: <[1]> <[2]> "x"', 'start: "a" <[2]> "b"', "start: <[^5]>",
]  # fmt: skip


@pytest.mark.parametrize("text", CONTROLS)
def test_no_form_has_control_tokens_but_the_end(texts: Texts, text: str) -> None:
    key, found = texts.begin(grammar(text))
    if found.allowed and A in allowed(found) and text.startswith('start: "a"'):
        found = texts.advance(key, A)
    if found.allowed is None:
        assert found.why == "only control tokens may follow, and these are never allowed"
    else:
        assert not set(allowed(found)) & {0, 1}
        assert (texts.end in allowed(found)) is ("*" in text and "[*]" not in text)
    texts.forms.end(key)


def test_names_of_control_tokens_are_not_revealed(texts: Texts) -> None:
    _, found = texts.begin(grammar("start: <s>"))
    assert (found.reason, found.why) == ("INVALID_FIELD", 'unknown special token: "<s>"')


def chained(count: int, make: Any) -> Form:
    """A schema of `count` parts, each of which refers to the one before it."""
    parts: dict[str, Any] = {"p0": {"type": "string"}}
    for number in range(1, count):
        parts[f"p{number}"] = make(f"#/$defs/p{number - 1}", number)
    return schema({"$defs": parts, "$ref": f"#/$defs/p{count - 1}"})


NASTY = {
    "stack-objects": chained(1000, lambda ref, _: {"properties": {"a": {"$ref": ref}}}),
    "stack-rules": grammar("start: r0", *(f"r{i}: r{i + 1}" for i in range(5000)), 'r5000: "x"'),
    "memory-or-time": schema(
        {"allOf": [{"type": "string", "pattern": f".*a{i}.*"} for i in range(200)]}
    ),
    "squares": schema({"type": "object", "properties": {f"p{i}": {} for i in range(4000)}}),
    "doubling-tokens": grammar(
        "start: T0", *(f"T{i}: T{i + 1} T{i + 1}" for i in range(40)), 'T40: "x"'
    ),
    "doubling-refs": chained(30, lambda ref, _: {"allOf": [{"anyOf": [{"$ref": ref}, {}]}] * 2}),
    "repeats": Form(FormKind.REGEX, "(a{1000}){1000}"),
    "repeats-later": Form(FormKind.REGEX, "[xy]((a{1000}){1000}){1000}"),
    "many-states": Form(FormKind.REGEX, r"(.|\n)*a(.|\n){30}"),
    "ambiguous": grammar("start: s", 's: s s s | s s | "a" | ""'),
    "many-rules": grammar(
        "start: " + " | ".join(f"r{i}" for i in range(1500)),
        *(f'r{i}: "k{i}" r{i * 7 % 1500}?' for i in range(1500)),
    ),
    "long-constant": schema({"const": "x" * 60_000}),
    "large-enum": schema({"enum": [f"value {i}" for i in range(4000)]}),
    "no-end": schema({"type": "array", "minItems": 10**9}),
}


TOO_MUCH = {"stack-objects": "memory", "stack-rules": "memory", "memory-or-time": "(time|memory)"}


@pytest.mark.parametrize("name", NASTY)
def test_no_form_takes_more_than_it_may(texts: Texts, name: str) -> None:
    begun, other = texts.begin(DIGITS)
    chosen = random.Random(0)
    key, found = texts.begin(NASTY[name])
    for _ in range(8):
        if found.allowed is None or (token := chosen.choice(allowed(found))) == texts.end:
            break
        found = texts.advance(key, token)
    if found.allowed is None:
        assert found.reason in ("INVALID_FIELD", "STRUCTURED_OUTPUT_FAILED")
    if name in TOO_MUCH:
        assert re.fullmatch(f"it exceeds the {TOO_MUCH[name]} limit of a constraint", found.why)
    texts.forms.end(key)
    # Beside it another goes on, in the next process if it has to be.
    assert allowed(texts.advance(begun, allowed(other)[3])) == allowed(other)
    assert worker().memory_info().rss < 1 << 30
    texts.forms.end(begun)


def test_a_form_for_which_the_process_was_lost_is_not_tried_again_at_once(texts: Texts) -> None:
    form = chained(1001, lambda ref, _: {"properties": {"a": {"$ref": ref}}})
    assert texts.begin(form)[1].reason == "INVALID_FIELD"
    assert texts.begin(DIGITS)[1].allowed
    process = worker().pid
    for _ in range(3):
        assert texts.begin(form)[1].why == "it exceeds the memory limit of a constraint"
    assert texts.begin(DIGITS)[1].allowed
    assert worker().pid == process


def test_of_many_lost_forms_the_last_are_remembered() -> None:
    lost = FormBlocklist()
    forms = [Form(FormKind.REGEX, str(number)) for number in range(MAX_BLOCKED + 1)]
    for form in (*forms[:-1], forms[0], forms[-1]):
        lost.add(form, "it took too long")
    assert [each for each in forms if not lost.reason(each)] == [forms[1]]


def test_a_form_that_makes_a_forbidden_system_call_is_given_up_alone() -> None:
    texts = Texts(setup_of(byte_tokenizer()))
    begun, found = texts.begin(DIGITS)
    process = worker()
    process.suspend()
    texts.forms.begin(999, Form(FormKind.REGEX, "bad"))
    time.sleep(0.1)  # until it has been asked
    process.send_signal(signal.SIGSYS)  # as the kernel does
    process.resume()
    given_up = texts.found(999)
    assert (given_up.reason, given_up.why) == ("INVALID_FIELD", "it makes a forbidden system call")
    assert texts.advance(begun, allowed(found)[0]).allowed
    texts.forms.close()


def test_texts_that_are_under_way_go_before_new_ones(texts: Texts) -> None:
    key, found = texts.begin(DIGITS)
    process = worker()
    process.suspend()
    new = [1000 + number for number in range(20)]
    for number in new:
        texts.forms.begin(number, Form(FormKind.REGEX, f"[a-z]{{{number}}}"))
    texts.forms.advance([(key, [allowed(found)[0]])])
    process.resume()
    answers = [answer.key for answer in texts.each([*new, key])]
    assert answers == [key, *new] or answers == [new[0], key, *new[1:]]


def test_neither_new_nor_quick_texts_wait_for_all_slow_ones() -> None:
    texts = Texts(setup_of(byte_tokenizer()))
    quick, _ = texts.begin(DIGITS)
    begun = []
    for number in range(5):
        key, found = texts.begin(schema({"type": "integer", "multipleOf": 30011 + number}))
        assert found.seconds is not None and found.seconds > 0.01
        begun.append(key)
    process = worker()
    process.suspend()
    texts.forms.begin(1000, choice("x", "y"), "another")
    texts.forms.advance([*((key, [ONE]) for key in begun), (quick, [ONE])])
    process.resume()
    answers = [answer.key for answer in texts.each([*begun, quick, 1000])]
    assert len(answers) == 7
    assert {quick, 1000} <= set(answers[:3])
    texts.forms.close()


def test_a_text_takes_no_more_time_than_it_may_in_all() -> None:
    texts = Texts(setup_of(byte_tokenizer(), text_seconds=0.2))
    beside, _ = texts.begin(DIGITS)
    key, found = texts.begin(AMBIGUOUS)
    count = 0
    while found.allowed:
        found, count = texts.advance(key, A), count + 1
    assert (found.reason, found.why) == (
        "STRUCTURED_OUTPUT_FAILED",
        "it exceeds the time limit of a constraint",
    )
    assert count > 5
    process = worker().pid
    assert texts.advance(beside, ONE).allowed
    assert worker().pid == process
    texts.forms.close()


def test_what_has_ended_before_it_began_is_not_compiled(texts: Texts) -> None:
    process = worker()
    process.suspend()
    form = Form(FormKind.REGEX, "ended before")
    for number in (1, 2, 3):
        texts.forms.begin(2000 + number, form if number < 3 else DIGITS)
    texts.forms.end(2002)
    process.resume()
    answers = texts.each([2001, 2003])
    assert [answer.key for answer in answers] == [2001, 2003]
    assert texts.forms.take() == []


# The process


def test_texts_go_on_where_they_were_when_the_process_is_lost(texts: Texts) -> None:
    keys = []
    for _ in range(3):
        key, found = texts.begin(Form(FormKind.REGEX, "[0-9]a[b-d]"))
        (a,) = allowed(texts.advance(key, allowed(found)[0]))
        keys.append(key)
    lost = worker()
    lost.kill()
    lost.wait()
    texts.forms.advance([(key, [a]) for key in keys])
    answers = texts.each(keys)
    assert [answer.key for answer in answers] == keys
    assert all(len(allowed(answer)) == 3 for answer in answers)
    assert worker().pid != lost.pid


def test_several_are_asked_for_at_once(texts: Texts) -> None:
    begun = [texts.begin(DIGITS) for _ in range(20)]
    woken = texts.num_woken
    texts.forms.advance([(key, [allowed(found)[0]]) for key, found in begun])
    answers = texts.each([key for key, _ in begun])
    assert [answer.key for answer in answers] == [key for key, _ in begun]
    assert texts.num_woken == woken + 20


def test_any_number_may_be_asked_for_at_once() -> None:
    setup = setup_of(byte_tokenizer())
    texts = Texts(Setup(setup.tokenizer_json, 128_000, setup.end_tokens))
    keys = list(range(400))
    for key in keys:
        texts.forms.begin(key, DIGITS)
    assert all(found.allowed for found in texts.each(keys))
    process = worker().pid
    for _ in range(2):
        texts.forms.advance([(key, [ONE]) for key in keys])
        answers = texts.each(keys)
        assert sorted(answer.key for answer in answers) == keys
        assert all(answer.allowed for answer in answers)
    assert worker().pid == process
    texts.forms.close()


def large(number: int) -> Form:
    """Return one of which a text takes more than a MiB."""
    return schema({"enum": [f"v{number} {i:05}" for i in range(3800)]})


def test_texts_that_wait_take_no_memory_from_others() -> None:
    texts = Texts(setup_of(byte_tokenizer(), memory=70 << 20))
    key, _ = texts.begin(large(0))
    process = worker().pid
    for number in range(1, 60):
        assert texts.begin(large(number))[1].allowed
    # They go on as if they had been kept.
    for waiting in range(key, key + 60, 6):
        assert len(allowed(texts.advance(waiting, QUOTE))) == 1
    assert worker().pid == process
    texts.forms.close()


def test_what_has_ended_gives_its_memory_to_those_who_came_before_that() -> None:
    texts = Texts(setup_of(byte_tokenizer(), memory=70 << 20))
    begun = []
    for number in range(38):
        key, _ = texts.begin(large(number))
        assert texts.advance(key, QUOTE).allowed
        begun.append(key)
    process = worker()
    process.suspend()
    new = range(1000, 1016)
    for key in new:
        texts.forms.begin(key, large(key))
    for key in begun:
        texts.forms.end(key)
    process.resume()
    assert all(found.allowed for found in texts.each(new))
    assert worker().pid == process.pid
    texts.forms.close()


def test_nobody_is_blamed_for_the_memory_of_others() -> None:
    texts = Texts(setup_of(byte_tokenizer(), memory=70 << 20))
    processes = set()
    for number in range(60):
        key, found = texts.begin(large(number))
        assert found.allowed, found.why
        found = texts.advance(key, QUOTE)
        assert found.allowed, found.why
        processes.add(worker().pid)
    assert len(processes) > 1
    texts.forms.close()


def test_a_form_is_compiled_once(texts: Texts) -> None:
    form = Form(FormKind.REGEX, "once and no more")
    assert texts.begin(form)[1].seconds is not None
    assert texts.begin(form)[1].seconds is None


def test_a_text_that_exhausts_its_form_takes_nothing_from_others_of_that_form() -> None:
    texts = Texts(setup_of(number_tokenizer()))
    form = schema({"type": "integer", "multipleOf": 30011})
    beside, _ = texts.begin(form)
    for seed in range(2):
        chosen = random.Random(seed)
        key, found = texts.begin(form)
        count = 0
        while found.allowed is not None:
            count += 1
            token = chosen.choice([token for token in allowed(found) if token != texts.end])
            found = texts.advance(key, token)
        assert found.reason == "STRUCTURED_OUTPUT_FAILED"
        assert "too many states" in found.why
        assert count > 3
    assert len(allowed(texts.advance(beside, 20))) > 10
    texts.forms.close()


def test_nothing_is_started_before_the_first_form() -> None:
    before = len(psutil.Process().children())
    forms = Forms(setup_of(byte_tokenizer()), lambda: None)
    assert forms.take() == []
    forms.close()
    assert len(psutil.Process().children()) == before


def test_a_system_that_has_nothing_left_refuses_a_form_only_until_it_has() -> None:
    texts = Texts(setup_of(byte_tokenizer()))
    most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, most[1]))
    try:
        _, found = texts.begin(DIGITS)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, most)
    assert (found.allowed, found.reason) == (None, "ENGINE_UNAVAILABLE")
    assert texts.begin(DIGITS)[1].allowed
    texts.forms.close()


def test_a_tokenizer_that_makes_no_text_refuses_every_form() -> None:
    content = json.loads(byte_tokenizer().backend_tokenizer.to_str())
    content["decoder"] = {"type": "WordPiece", "prefix": "##", "cleanup": True}
    texts = Texts(Setup(json.dumps(content), 259, [2]))
    for _ in range(2):
        _, found = texts.begin(DIGITS)
        assert (found.allowed, found.reason) == (None, "STRUCTURED_OUTPUT_FAILED")
        assert "with the base's tokenizer" in found.why
    texts.forms.close()


def test_a_form_shows_nothing_of_what_was_written() -> None:
    assert repr(Form(FormKind.REGEX, "secret")) == "Form(regex)"
