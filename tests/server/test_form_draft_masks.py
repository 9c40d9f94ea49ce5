"""What may come behind a draft of a text that has a form, over the process that knows."""

import random
import time
from collections.abc import Iterator
from typing import Any

import pytest
from transformers import AutoTokenizer

from loramux_server.engine import structured_output
from loramux_server.engine.model_part import load_model
from loramux_server.forms import text
from loramux_server.forms.bits import has_bit
from loramux_server.forms.form import Form, FormKind
from loramux_server.forms.forms import Forms
from loramux_server.forms.messages import Advance, Allowed, Begin, Broken, MaskDraft, MaskedDraft
from loramux_server.forms.results import DraftMasks, Next, Results
from loramux_server.forms.worker import TextFollower
from loramux_server.wire.engine_config import EngineConfig
from loramux_server.wire.messages import Token
from tests.support.demo import DEMO
from tests.support.engine import Harness
from tests.support.models import byte_tokenizer
from tests.support.texts import (
    WAIT,
    Texts,
    allowed,
    choice,
    grammar,
    number_tokenizer,
    schema,
    setup_of,
    worker,
)

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "kind": {"enum": ["first kind", "second kind"]},
        "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2},
    },
    "required": ["name", "kind", "tags"],
    "additionalProperties": False,
}
CALL = schema(PERSON).text
KINDS = {
    "schema": schema(PERSON),
    "regex": Form(FormKind.REGEX, "order [0-9]{4}: [A-Z][a-z]{3,8}, (today|tomorrow) or never"),
    "choice": choice("the first one of them", "the second one", "none"),
    "grammar": grammar('start: "a" (x | "é")+ "end"', "x: /[0-9]{2}/ <[0-2]>?"),
    "tools": Form(FormKind.TOOL_CALLS, f'answer: call+\ncall: "<call>f" %json {CALL} "</call>"'),
    "thought": Form(
        FormKind.JSON_SCHEMA, CALL, before='before: "<think>" /[a-z ]{4,9}/ "</think>"'
    ),
}


@pytest.fixture(scope="module")
def texts() -> Iterator[Texts]:
    texts = Texts(setup_of(byte_tokenizer()))
    yield texts
    texts.forms.close()


def ids(text: str) -> list[int]:
    return list(byte_tokenizer()(text, add_special_tokens=False).input_ids)


@pytest.mark.parametrize("name", KINDS)
def test_it_is_what_comes_when_the_draft_was_right(texts: Texts, name: str) -> None:
    tokens = next(filter(None, (texts.write(KINDS[name], seed) for seed in range(9))))
    one, _ = texts.begin(KINDS[name])
    wanted = [texts.advance(one, token).allowed for token in tokens]
    several, _ = texts.begin(KINDS[name])
    place = 0
    for length in (1, 5, 16, 3, 16):
        draft = tokens[place : place + length]
        for _ in range(2):  # the text stays where it is
            assert list(texts.draft_masks(several, draft)) == wanted[place : place + length]
        found = texts.advance(several, *draft)
        place += len(draft)
        assert found.allowed == wanted[place - 1]
        if place == len(tokens):
            break
        right = tokens[place : place + 2]
        behind = wanted[place + len(right) - 1]
        assert behind is not None
        wrong = next(token for token in range(3, 259) if not has_bit(behind, token))
        assert (
            list(texts.draft_masks(several, [*right, wrong])) == wanted[place : place + len(right)]
        )
    for key in (one, several):
        texts.forms.end(key)


def test_it_ends_where_the_form_does_not_go_on(texts: Texts) -> None:
    key, _ = texts.begin(Form(FormKind.REGEX, "abc[0-9]{2}"))
    assert len(texts.draft_masks(key, ids("abc12"))) == 5
    assert len(texts.draft_masks(key, ids("abx12"))) == 2
    assert len(texts.draft_masks(key, ids("x"))) == 0
    assert len(texts.draft_masks(key, [*ids("abc12"), texts.end, *ids("ab")])) == 5
    assert len(texts.draft_masks(key, [*ids("abc123")])) == 5
    assert allowed(texts.advance(key, *ids("abc12"))) == [texts.end]
    key, _ = texts.begin(grammar('start: "a" <[0]> "b" | "ac"'))
    assert len(texts.draft_masks(key, [*ids("a"), 0, *ids("b")])) == 1
    assert len(texts.draft_masks(key, ids("ac"))) == 2


def begin_compiled(texts: Texts, form: Form) -> tuple[int, Next]:
    """Begin a text whose form was compiled before: where that takes long, nothing is told."""
    texts.begin(form)
    return texts.begin(form)


def test_what_has_to_come_is_reported_and_no_end(texts: Texts) -> None:
    _, found = begin_compiled(texts, choice("the same", "the other"))
    assert list(found.forced) == ids("the ")
    key, found = begin_compiled(texts, Form(FormKind.REGEX, "ab?"))
    assert list(found.forced) == ids("a")
    assert list(texts.advance(key, *found.forced).forced) == []
    assert list(texts.advance(key, *ids("b")).forced) == []
    _, found = begin_compiled(texts, schema({"const": "x" * 1000}))
    assert list(found.forced) == ids('"' + "x" * 63)
    _, found = begin_compiled(texts, grammar('start: "ab" <[0]> "c" | "ab" <[1]> | "abd"'))
    assert list(found.forced) == ids("ab")


def test_what_comes_next_goes_before_what_comes_behind_drafts(texts: Texts) -> None:
    begun = [texts.begin(KINDS["regex"])[0] for _ in range(6)]
    draft = ids("order ")
    process = worker()
    process.suspend()
    texts.forms.advance([(begun[0], draft)])  # whose turn it is
    texts.forms.mask_drafts([(key, draft) for key in begun[1:4]])
    texts.forms.advance([(key, draft) for key in begun[4:]])
    texts.forms.begin(1000, Form(FormKind.REGEX, "one that is new"))
    process.resume()
    found = texts.forms.take([begun[0], *begun[4:], 1000], WAIT, begun[1:4])
    assert [type(one) for one in found] == [Next] * 4 + [DraftMasks] * 3
    assert all(len(one.masks) == 6 for one in found if isinstance(one, DraftMasks))


def test_nothing_is_reported_about_texts_that_are_slow_or_have_gone(texts: Texts) -> None:
    slow, found = texts.begin(schema({"type": "integer", "multipleOf": 30011}))
    assert found.seconds is not None and found.seconds > 0.01
    assert not found.supports_drafts and texts.draft_masks(slow, ids("1")) == ()
    quick, found = texts.begin(KINDS["choice"])
    assert texts.advance(quick, *ids("the ")).supports_drafts
    texts.forms.end(slow)
    texts.forms.mask_drafts([(slow, ids("1")), (quick, ids("first"))])
    assert [one.key for one in texts.forms.take(seconds=WAIT, drafted=[quick])] == [quick]
    texts.forms.end(quick)


def test_texts_go_on_where_they_were_when_the_process_is_lost_with_a_draft(texts: Texts) -> None:
    draft = ids("order 1234: ")
    begun = [texts.begin(KINDS["regex"])[0] for _ in range(3)]
    for key in begun:
        texts.advance(key, *draft[:3])
    wanted = texts.draft_masks(begun[0], draft[3:])
    lost = worker()
    lost.kill()
    lost.wait()
    texts.forms.mask_drafts([(key, draft[3:]) for key in begun])
    found = texts.forms.take(seconds=WAIT, drafted=begun)
    assert found == [DraftMasks(key, ()) for key in begun]
    for key in begun:
        found_next = texts.advance(key, *draft[3:6])
        assert found_next.allowed == wanted[2]
    assert worker().pid != lost.pid
    # What was lost with it may have been its draft.
    assert [texts.draft_masks(key, draft[6:]) for key in begun] == [(), wanted[3:], wanted[3:]]


def test_nobody_waits_for_what_comes_behind_a_draft_of_a_text_that_is_given_up() -> None:
    results = Results(lambda: None)
    reported: list[Next | DraftMasks] = [Next(1, None, "STRUCTURED_OUTPUT_FAILED"), Next(2, b"x")]
    reported.append(DraftMasks(2, ()))
    for found in reported:
        results.add(found)
    assert results.take([1, 2], 10**6, [1, 2]) == reported


def test_drafts_take_a_form_to_no_limit_that_its_text_would_not_reach() -> None:
    setup, form = setup_of(number_tokenizer()), schema({"type": "integer", "multipleOf": 30011})

    def followed(*, drafts: bool) -> list[bytes | str]:
        follower, chosen, other = TextFollower(setup), random.Random(0), random.Random(1)
        answer = follower.answer(Begin(0, form, []))
        reported: list[bytes | str] = []
        while isinstance(answer, Allowed):
            reported.append(answer.bits)
            tokens = [token for token in range(3, 1300) if has_bit(answer.bits, token)]
            for _ in range(9 if drafts else 0):
                assert isinstance(follower.answer(MaskDraft(0, other.choices(tokens))), MaskedDraft)
            answer = follower.answer(Advance(0, [chosen.choice(tokens)]))
        assert isinstance(answer, Broken)
        return [*reported, answer.why]

    plain = followed(drafts=False)
    assert "too many states" in str(plain[-1]) and len(plain) > 4
    drafted = followed(drafts=True)
    assert drafted[: len(plain) - 1] == plain[:-1]
    assert drafted[-1] == plain[-1]


def asked(monkeypatch: pytest.MonkeyPatch, most: int) -> tuple[list[list[Token]], list[int]]:
    """Return what the demo model makes of forms, each asked for several times, and the steps."""
    monkeypatch.setattr(structured_output, "PATIENCE", WAIT)
    for name in ("SLOW_SECONDS", "LONG_SECONDS"):
        monkeypatch.setattr(text, name, WAIT)
    base = load_model(EngineConfig(model=str(DEMO / "base"), kernels="cpu", deterministic=True))
    tokenizer = AutoTokenizer.from_pretrained(DEMO / "base")
    # White space is all that it would write.
    blank = [i for i in range(len(tokenizer)) if not tokenizer.decode([i]).strip()]
    common: dict[str, Any] = {
        "ignore_eos": False, "max_tokens": 70, "logit_bias": dict.fromkeys(blank, -20.0),
        "num_logprobs": 2,
    }  # fmt: skip
    subject = Harness(
        base, kernels="cpu", speculative_tokens=most, num_blocks=400, deterministic=True
    )
    steps = []
    for form in KINDS.values():
        begin = len(subject.reports)
        for _ in range(3):
            prompt = tokenizer("The answer is: ").input_ids
            subject.submit(prompt, form=form, temperature=0.0, **common)
            subject.submit(prompt, form=form, temperature=1.2, seed=3, **common)
            subject.submit([*prompt, 40], max_tokens=5)
            while not subject.engine.can_step:  # the form is not known yet
                time.sleep(0.001)
            subject.run(10**6)
        steps.append(sum(report.batch is not None for report in subject.reports[begin:]))
    assert not subject.failures
    follower = subject.engine._structured_output._masks
    assert isinstance(follower, Forms)
    follower.close()
    assert {token.finish for found in subject.tokens.values() for token in found} > {"stop"}
    return list(subject.tokens.values()), steps


def test_texts_are_the_same_to_the_last_bit_in_fewer_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain, plain_steps = asked(monkeypatch, 0)
    drafted, steps = asked(monkeypatch, 16)
    assert drafted == plain
    for with_drafts, without in zip(steps, plain_steps, strict=True):
        assert with_drafts < 0.6 * without
