"""What a model thinks as a message on a channel of its own: how a template says so, and reading."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher

from loramux_server.chat.channels import channels_of
from loramux_server.chat.messages import Call, Conversation, Message, Tool
from loramux_server.forms.form import Form, FormKind
from loramux_server.reasoning.channel_reader import ChannelReader
from loramux_server.reasoning.channels import ChannelSyntax, OpenMessage, channel_syntax_of
from loramux_server.reasoning.syntax import ANSWER, THINKING
from loramux_server.reasoning.thinking import Thinking
from loramux_server.tools.syntax import joined
from tests.support.channels import CHANNELS, OURS, THEIRS, accepts, pieces_of
from tests.support.templates import TEMPLATES
from tests.support.tool_syntaxes import matcher_by
from tests.support.tool_templates import TOOL_TEMPLATES

A, F, C = (f"<|channel|>{name}<|message|>" for name in ("analysis", "final", "commentary"))
NEXT = "<|end|><|start|>assistant"
CALL = '<|channel|>commentary to=functions.clock json<|message|>{"a": 1}'


def syntax_by(template: str) -> ChannelSyntax | None:
    return channel_syntax_of(pieces_of(template, THINKING), OURS.vocabulary.ids)


def syntax() -> ChannelSyntax:
    found = syntax_by(CHANNELS)
    assert found is not None
    return found


SYNTAX = syntax()


def prompt_of(*turns: Message, **variables: Any) -> str:
    conversation = Conversation(list(turns), [Tool("clock")], variables)
    return joined(pieces_of(CHANNELS, conversation, prompt=True))


# How a template says so


def test_on_which_channel_a_model_thinks() -> None:
    assert (SYNTAX.thought, SYNTAX.channels.answer) == ("analysis", "final")
    assert joined(SYNTAX.channels.between) == NEXT
    assert joined(SYNTAX.channels.header(SYNTAX.thought)) == A
    assert SYNTAX.ids.keys() == {"<|start|>", "<|channel|>", "<|message|>", "<|end|>"}
    alone = Conversation([THINKING.messages[0], Message("assistant", ANSWER)])
    assert channels_of(pieces_of(CHANNELS, alone), ANSWER) == SYNTAX.channels


@pytest.mark.parametrize("name", [*TEMPLATES, *TOOL_TEMPLATES])
def test_other_templates_have_no_channels(name: str) -> None:
    assert syntax_by((TEMPLATES | TOOL_TEMPLATES)[name]) is None


@pytest.mark.parametrize(("old", "new"), [
    ("'<|start|>assistant<|channel|>analysis", "'<|start|>someone<|channel|>analysis"),
    ("assistant<|channel|>analysis", "assistant<|channel|>final"),
    ("final<|message|>' +", "final\\n<|message|>' +"),
    ("'<|start|>assistant<|channel|>final<|message|>' +", "'' +"),
    ("message.thinking + '<|end|>'", "message.thinking + '<|end|>\\n'"),
    ("message.thinking and", "message.never and"),
])  # fmt: skip
def test_a_template_that_is_not_quite_so_has_none(old: str, new: str) -> None:
    assert old in CHANNELS
    assert syntax_by(CHANNELS.replace(old, new)) is None


ASKED = Message("user", "a")
CALLING = Message("assistant", "", [Call("", "clock", {})], reasoning="so")


@pytest.mark.parametrize(("prompt", "open_message"), [
    (prompt_of(ASKED), OpenMessage.NOTHING),
    (prompt_of(ASKED, Message("assistant", "b", reasoning="c"), ASKED), OpenMessage.NOTHING),
    (prompt_of(ASKED, CALLING, Message("tool", "3")), OpenMessage.NOTHING),
    (prompt_of(ASKED, CALLING, Message("tool", "3"))[-60:], OpenMessage.NOTHING),
    (prompt_of(ASKED, CALLING, Message("tool", "3"), at_once=True), OpenMessage.ANSWER),
    (prompt_of(ASKED) + A, OpenMessage.THOUGHT),
    (prompt_of(ASKED) + A + "so <|en", OpenMessage.THOUGHT),
    (prompt_of(ASKED) + A + "so<|end|>", OpenMessage.NOTHING),
    ("", OpenMessage.NOTHING),
])  # fmt: skip
def test_what_a_prompt_begins(prompt: str, open_message: OpenMessage) -> None:
    assert SYNTAX.open_message(prompt) is open_message


# Reading


def read(text: list[str], open_message: OpenMessage = OpenMessage.NOTHING) -> tuple[str, str]:
    reader = ChannelReader(SYNTAX, open_message)
    found = [reader.push(piece) for piece in text]
    found.append(reader.flush())
    return "".join(each.reasoning for each in found), "".join(each.text for each in found)


@pytest.mark.parametrize(("text", "wanted"), [
    (f"{A}hm\n\nso{NEXT}{F}yes ", ("hm\n\nso", "yes ")),
    (f"{A} hm \n{NEXT}{F}\n yes", ("hm", "\n yes")),
    (f"{F}yes\n\n so ", ("", "yes\n\n so ")),
    (f"\n {F}yes", ("", "yes")),
    (f"{A}hm{NEXT}{F}", ("hm", "")),
    (f"{A}{NEXT}{F}yes", ("", "yes")),
    (f"{A}hm <|end|", ("hm <|end|", "")),
    (f"{A}hm <|end|>", ("hm", "")),
    (f"{A}hm <|end|><|start|>assis", ("hm", "")),
    (f"{A}hm{NEXT}", ("hm", "")),
    (f"{A}hm{NEXT}<|channel|>fin", ("hm", "")),
    (f"{A}hm <|end|> mm", ("hm <|end|> mm", "")),
    (f"{A}hm{NEXT}{A}so{NEXT}{F}yes", ("hm\n\nso", "yes")),
    (f"{A}hm<|start|>assistant{F}yes", ("hm", "yes")),
    (f"{A}hm{NEXT}{C}Wait.{NEXT}{A}so{NEXT}{F}yes<|end|>", ("hm\n\nso", "Wait.\n\nyes")),
    (f"{C}Wait. {NEXT}{CALL}", ("", f"Wait. {CALL}")),
    (f"{A}hm{NEXT}{CALL}<|start|>assistant{F}yes", ("hm", f"{CALL}\n\nyes")),
    (f"{A}hm{NEXT} to=functions.f{C}{{}}", ("hm", f" to=functions.f{C}{{}}")),
    ("<|channel|>final json<|message|>{}", ("", "{}")),
    ("<|channel|> analysis <|message|>hm", ("hm", "")),
    ("<|channel|>analysis to=x<|message|>1", ("", "<|channel|>analysis to=x<|message|>1")),
    ("<|channel|>commentary to=fu", ("", "<|channel|>commentary to=fu")),
    (f"<|start|>assistant{F}yes", ("", "yes")),
    (" yes <|channel", ("", " yes <|channel")),
    (f"yes {A}no", ("", f"yes {A}no")),
    ("<|channel|>a\nb<|message|>c", ("", "<|channel|>a\nb<|message|>c")),
    (f"<|channel|>{'x' * 300}<|message|>c", ("", f"<|channel|>{'x' * 300}<|message|>c")),
    ("", ("", "")), (" ", ("", " ")),
])  # fmt: skip
def test_messages_are_distinguished(text: str, wanted: tuple[str, str]) -> None:
    assert read([text]) == wanted
    assert read(list(text)) == wanted


@pytest.mark.parametrize(("text", "open_message", "wanted"), [
    (f"\nhm{NEXT}{F}yes", OpenMessage.THOUGHT, ("hm", "yes")),
    (f" yes{NEXT}{A}hm", OpenMessage.ANSWER, ("hm", " yes")),
])  # fmt: skip
def test_what_the_prompt_has_begun_is_continued(
    text: str, open_message: OpenMessage, wanted: tuple[str, str]
) -> None:
    assert read([text], open_message) == wanted
    assert read(list(text), open_message) == wanted


def test_text_comes_as_soon_as_it_can_be_no_mark() -> None:
    reader = ChannelReader(SYNTAX, OpenMessage.NOTHING)
    assert reader.push(f"{A}hm") == ("hm", "")
    assert reader.push(f" so{NEXT}{F}y") == (" so", "y")
    assert reader.push("es <|e") == ("", "es ")
    assert reader.push("x") == ("", "<|ex")


PARTS = st.sampled_from([
    A, F, C, CALL, NEXT, "<|channel|>", "<|message|>", "<|start|>", "<|end|>", "assistant", "=",
    "<|call|>", "final", "analysis", "<|", "|>", " ", "\n", "a", "x" * 130,
])  # fmt: skip


@settings(max_examples=300)
@given(
    parts=st.lists(PARTS, max_size=12), open_message=st.sampled_from(OpenMessage), data=st.data()
)
def test_however_messages_are_cut_they_are_read_the_same(
    parts: list[str], open_message: OpenMessage, data: st.DataObject
) -> None:
    text = "".join(parts)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=5)))
    pieces = [text[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert (
        read(pieces, open_message) == read([text], open_message) == read(list(text), open_message)
    )


# Forms


def matcher(prompt: str, form: Form) -> LLMatcher:
    return matcher_by(Thinking(SYNTAX, prompt).before(form), THEIRS)


def test_a_form_comes_after_the_header_of_an_answer() -> None:
    schema = Form(FormKind.JSON_SCHEMA, '{"type": "boolean"}')
    found = matcher(prompt_of(ASKED), schema)
    for text in (f"{F}true", f"{A}{NEXT}{F}true", f"{A}hm\n<{NEXT}{F}false"):
        assert accepts(found, text)
    for text in ("true", f"{A}true", f"{C}true", f"{A}hm{NEXT}true", f"{F}maybe"):
        assert not accepts(found, text)
    opened = matcher(prompt_of(ASKED) + A, schema)
    assert accepts(opened, f"hm{NEXT}{F}true")
    assert not accepts(opened, f"{F}true")
    answered = matcher(prompt_of(ASKED, at_once=True), schema)
    assert accepts(answered, "true") and not accepts(answered, f"{F}true")
