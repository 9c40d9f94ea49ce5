"""What a model thinks: how a template marks it, and telling it apart."""

from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loramux_server.chat.encoder import ChatEncoder
from loramux_server.chat.messages import Conversation, Message
from loramux_server.chat.shield import Shield
from loramux_server.chat.template import Template
from loramux_server.chat.token_patterns import Tokens
from loramux_server.reasoning.reader import ReasoningReader
from loramux_server.reasoning.syntax import THINKING as PROBE
from loramux_server.reasoning.syntax import ReasoningSyntax, reasoning_syntax_of
from tests.support.templates import CHATML, THINKING, chat_tokenizer
from tests.support.tool_templates import TAGS

THEIRS = chat_tokenizer()
OURS = ChatEncoder(THEIRS.backend_tokenizer.to_str())
WORDS = OURS.template_tokens(dict(THEIRS.special_tokens_map))
SYNTAX = ReasoningSyntax("<think>", "</think>", {})

MARKED = """\
{%- for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}
{%- if m.thinking %}{{ 'BEGIN OF THOUGHT ' + m.thinking + ' END' }}{% endif %}
{{- m.content + '<|im_end|>' }}{% endfor %}"""


def syntax_by(template: str) -> ReasoningSyntax | None:
    compiled = Template(template)
    render = partial(compiled.render, add_generation_prompt=False, variables=WORDS.variables)
    pieces = Shield(Tokens(WORDS), template, compiled.literals).pieces(PROBE, render)
    return reasoning_syntax_of(pieces, template, OURS.vocabulary.ids)


def test_how_a_template_marks_what_is_thought() -> None:
    tags = syntax_by(TAGS)
    assert tags is not None
    assert (tags.opening, tags.closing, set(tags.ids)) == (
        "<think>", "</think>", {"<think>", "</think>"},
    )  # fmt: skip
    assert syntax_by(MARKED) == ReasoningSyntax("THOUGHT", "END§", {})
    assert syntax_by(CHATML) is None


def test_marks_of_a_template_that_leaves_thoughts_out_are_those_that_it_looks_for() -> None:
    found = syntax_by(THINKING)
    assert found is not None and (found.opening, found.closing) == ("<think>", "</think>")
    assert reasoning_syntax_of(None, THINKING, {}) == SYNTAX
    assert reasoning_syntax_of(None, CHATML, {}) is None


def test_the_tokens_of_a_turn_with_a_thought_are_those_of_transformers() -> None:
    turns = [
        Message("user", "a"),
        Message("assistant", "b", reasoning="c < d"),
        Message("user", "e"),
    ]
    compiled = Template(TAGS)
    render = partial(compiled.render, add_generation_prompt=True, variables=WORDS.variables)
    pieces = Shield(Tokens(WORDS), TAGS, compiled.literals).pieces(Conversation(turns), render)
    theirs = THEIRS.apply_chat_template(
        [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b", "reasoning": "c < d"},
            {"role": "user", "content": "e"},
        ],
        chat_template=TAGS, add_generation_prompt=True, return_dict=False,
    )  # fmt: skip
    assert OURS.encode(pieces) == theirs
    assert THEIRS.convert_tokens_to_ids("<think>") in theirs


@pytest.mark.parametrize(("prompt", "is_open"), [
    ("assistant\n", False), ("assistant\n<think>\n", True),
    ("assistant\n<think>\n\n</think>\n\n", False), ("</think>assistant<think>", True),
])  # fmt: skip
def test_whether_a_prompt_begins_a_thought(prompt: str, is_open: bool) -> None:
    assert SYNTAX.is_open(prompt) == is_open


def read(text: list[str], *, is_open: bool) -> tuple[str, str]:
    reader = ReasoningReader(SYNTAX, is_open=is_open)
    found = [reader.push(piece) for piece in text]
    found.append(reader.flush())
    return "".join(each.reasoning for each in found), "".join(each.text for each in found)


@pytest.mark.parametrize(("text", "is_open", "wanted"), [
    ("<think>\nhm\n\nso\n</think>\n\nyes ", False, ("hm\n\nso", "yes ")),
    ("\n<think>hm</think>yes", False, ("hm", "yes")),
    ("<think></think> yes", False, ("", "yes")),
    ("\nhm\n</think>\n\nyes", True, ("hm", "yes")),
    ("hm </thin k>", True, ("hm </thin k>", "")),
    ("<think> hm </thi", False, ("hm </thi", "")),
    ("yes <think>no</think>", False, ("", "yes <think>no</think>")),
    ("  yes</think>", False, ("", "  yes</think>")),
    ("hm</think>yes</think>", True, ("hm", "yes</think>")),
    ("<thi", False, ("", "<thi")),
    ("", True, ("", "")),
])  # fmt: skip
def test_what_is_thought_is_distinguished(
    text: str, is_open: bool, wanted: tuple[str, str]
) -> None:
    assert read([text], is_open=is_open) == wanted
    assert read(list(text), is_open=is_open) == wanted


PARTS = st.sampled_from(["<think>", "</think>", "<", "/", " ", "\n", "a", "think>", "</thi"])


@settings(max_examples=300)
@given(parts=st.lists(PARTS, max_size=10), is_open=st.booleans(), data=st.data())
def test_however_a_text_is_cut_it_is_read_the_same(
    parts: list[str], is_open: bool, data: st.DataObject
) -> None:
    text = "".join(parts)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=5)))
    pieces = [text[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert read(pieces, is_open=is_open) == read([text], is_open=is_open)
