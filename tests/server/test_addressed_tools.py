"""Calls that are messages to a tool: how a template writes them, reading them, demanding them."""

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher

from loramux_server.chat.messages import Call, Conversation, Message, Tool
from loramux_server.reasoning.channel_reader import ChannelReader
from loramux_server.reasoning.channels import OpenMessage, channel_syntax_of
from loramux_server.reasoning.syntax import THINKING
from loramux_server.reasoning.thinking import Thinking
from loramux_server.tools.addressed import AddressedSyntax
from loramux_server.tools.addressed_form import form_of_addressed
from loramux_server.tools.addressed_reader import AddressedReader
from loramux_server.tools.form import ANY_TEXT, Otherwise
from loramux_server.tools.rendered_text import UnknownSyntaxError
from loramux_server.tools.syntax import joined
from tests.support.channels import (
    CHANNELS,
    OURS,
    THEIRS,
    accepts,
    pieces_of,
    tool_syntax_by,
)
from tests.support.tool_syntaxes import CLOCK, TOOLS, WEATHER, matcher_by


def syntax() -> AddressedSyntax:
    found = tool_syntax_by(CHANNELS)
    assert isinstance(found, AddressedSyntax)
    return found


SYNTAX = syntax()
THOUGHTS = channel_syntax_of(pieces_of(CHANNELS, THINKING), OURS.vocabulary.ids)
A, F, C = (f"<|channel|>{name}<|message|>" for name in ("analysis", "final", "commentary"))
NEXT = "<|end|><|start|>assistant"
OSLO = ("get_weather", {"city": 'O"}<|[s\\lo\n'})
TIME: tuple[str, dict[str, Any]] = ("clock", {})
ARGUMENTS = json.dumps(OSLO[1])
WAYS = [
    " to=functions.{}<|channel|>commentary json<|message|>",
    "<|channel|>commentary to=functions.{} <|constrain|>json<|message|>",
    "<|channel|>commentary to=functions.{}<|message|>",
    " to=functions.{}<|channel|>commentary<|message|>",
]
MORE_WAYS = [
    "<|channel|>commentary to=functions.{} json<|message|>",
    "<|channel|>commentary to=functions.{}<|constrain|>json<|message|>",
    " to=functions.{} <|channel|> commentary <|constrain|> json <|message|>",
    "<|channel|>analysis to=functions.{} code<|message|>",
]

# How a template writes them


def test_what_is_known_of_a_call() -> None:
    assert (SYNTAX.recipient, SYNTAX.channel, SYNTAX.kind, SYNTAX.end.text) == (
        " to=functions.", "commentary", "json", "<|call|>",
    )  # fmt: skip
    assert joined(SYNTAX.channels.between) == NEXT
    assert SYNTAX.ids.keys() == {
        "<|start|>", "<|channel|>", "<|message|>", "<|constrain|>", "<|end|>", "<|call|>",
    }  # fmt: skip


@pytest.mark.parametrize("prompt", [True, False])
def test_the_tokens_are_those_of_transformers(prompt: bool) -> None:
    turns = [
        Message("user", "a"), Message("assistant", "b", reasoning="c"), Message("user", "d"),
        Message("assistant", "", [Call("", "clock", {"e": [1, None]})], reasoning="f"),
        Message("tool", "<3>"), Message("assistant", "g", reasoning="h"),
    ]  # fmt: skip
    theirs = THEIRS.apply_chat_template(
        [turn.as_message() for turn in turns], tools=[CLOCK.as_tool()], chat_template=CHANNELS,
        add_generation_prompt=prompt, return_dict=False,
    )  # fmt: skip
    found = pieces_of(CHANNELS, Conversation(turns, [CLOCK]), prompt=prompt)
    assert OURS.encode(found) == theirs
    text = joined(found)
    assert f"{A}f<|end|><|start|>assistant to=functions.clock<|channel|>commentary json" in text
    assert text.endswith(
        f"{F}g<|end|><|start|>assistant" if prompt else f"{A}h{NEXT}{F}g<|return|>"
    )
    assert f"{A}c" not in text


@pytest.mark.parametrize(("old", "new", "message"), [
    ("functions.' + tool.function | tojson", "'", "does not support tools"),
    ("assistant to=functions", "assistant for functions", "unsupported syntax"),
    ("assistant to=functions", "assistantto=functions", "unsupported syntax"),
    ("<|channel|>commentary json", "<|channel|>commentary is json", "unsupported syntax"),
    ("<|channel|>commentary json", "<|constrain|>commentary json", "unsupported syntax"),
    ("{{- '<|call|>' }}", "", "unsupported syntax"),
    ("function.arguments | tojson", "function.arguments | string", "unsupported syntax"),
    ("<|channel|>final<|message|>' + message", "<|message|>' + message", "unsupported syntax"),
])  # fmt: skip
def test_what_is_not_quite_so_is_not_read(old: str, new: str, message: str) -> None:
    assert old in CHANNELS
    with pytest.raises(UnknownSyntaxError, match=message):
        tool_syntax_by(CHANNELS.replace(old, new))


# Reading


def read(pieces: Sequence[str], most: int | None = None) -> tuple[str, list[tuple[str, Any]]]:
    reader = AddressedReader(SYNTAX, most=most)
    found = [reader.push(piece) for piece in pieces]
    text = "".join(each.text for each in found) + reader.flush().text
    calls = [call for each in found for call in each.calls]
    assert len({call.id for call in calls}) == len(calls) == reader.num_calls
    return text, [(call.name, json.loads(call.arguments)) for call in calls]


@pytest.mark.parametrize("way", [*WAYS, *MORE_WAYS])
def test_calls_are_read_however_a_model_writes_them(way: str) -> None:
    call, other = f"{way.format(OSLO[0])}{ARGUMENTS}", f"{way.format('clock')} {{}}<|call|>"
    for text, wanted in (
        (call, ("", [OSLO])),
        (f"{call}<|call|>", ("", [OSLO])),
        (f"{call}<|end|>", ("", [OSLO])),
        (f"Wait < [{{. \n{call}\n<|call|>", ("Wait < [{.", [OSLO])),
        (f"{other}<|start|>assistant{call}<|call|>\n so", ("so", [TIME, OSLO])),
        (f"{A}hm{NEXT}{other}", (f"{A}hm<|end|>", [TIME])),
    ):
        assert read([text]) == wanted
        assert read(list(text)) == wanted


@pytest.mark.parametrize("text", [
    "No call at all.\n\n Not one. <|chan", "to=functions.", " to=functions.clock is how",
    f"{F}yes", f"{A}hm{NEXT}{F}yes <|end|", f"{C}Wait. ",
    f" to=functions.clock{C}no object", f" to=functions.clock{C}[1]",
    f' to=functions.clock{C}{{"a": ', f' to=functions.clock{C}{{"a": NaN}}<|call|> and on',
    f" to=functions.clock{C}" + '{"a": ' * 300, " to=functions.clock<|channel|>comm",
    f" to=functions.{'x' * 65}{C}{{}}", f" to=functions.a b c{C}{{}}", f" to=browser.open{C}{{}}",
    f" to=functions.clock\n{C}{{}}", f" to=functions.clock{' ' * 300}{C}{{}}", f"{C} {{}}", " ", "",
    f' to=functions.clock{C}{{"a": 18446744073709551616}}',
])  # fmt: skip
def test_what_is_no_call_is_text_as_it_was_written(text: str) -> None:
    assert read([text]) == read(list(text)) == (text, [])


def test_no_more_calls_are_read_than_may_be() -> None:
    call = f"{WAYS[0].format('clock')}{{}}<|call|>"
    assert read([f"{call}<|start|>assistant{call}"], most=1)[1] == [TIME]


PARTS = st.sampled_from([
    *(way.format("clock") for way in WAYS), A, F, C, NEXT, "{}", '{"a": "}<|call|>"}', "<|call|>",
    "<|start|>", "assistant", "<|end|>", "<|channel|>", "<|message|>", "to=functions.", " to=",
    "<|", " ", "\n", "a", "=", "x" * 130,
])  # fmt: skip


def read_both(pieces: Sequence[str]) -> tuple[str, str, list[tuple[str, str]]]:
    """Return thoughts, text and calls, as they are read of one completion."""
    assert THOUGHTS is not None
    thoughts, reader = (
        ChannelReader(THOUGHTS, OpenMessage.NOTHING),
        AddressedReader(SYNTAX, most=None),
    )
    reasoning, text, calls = "", "", []
    for found in [*map(thoughts.push, pieces), thoughts.flush()]:
        reasoning += found.reasoning
        reported = reader.push(found.text)
        text += reported.text
        calls += [(call.name, call.arguments) for call in reported.calls]
    return reasoning, text + reader.flush().text, calls


@settings(max_examples=300)
@given(parts=st.lists(PARTS, max_size=12), data=st.data())
def test_however_messages_are_cut_they_are_read_the_same(
    parts: list[str], data: st.DataObject
) -> None:
    text = "".join(parts)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=5)))
    pieces = [text[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert read(pieces) == read([text]) == read(list(text))
    assert read_both(pieces) == read_both([text]) == read_both(list(text))


@pytest.mark.parametrize("way", [*WAYS, *MORE_WAYS])
def test_thoughts_and_text_and_calls_are_distinguished(way: str) -> None:
    call = f"{way.format(OSLO[0])}{ARGUMENTS}<|call|>"
    calls = [(OSLO[0], json.dumps(OSLO[1], ensure_ascii=False))]
    for text, wanted in (
        (call, ("", "", calls)),
        (f"{A}hm{NEXT}{call}", ("hm", "", calls)),
        (f"{A}hm{NEXT}{C}Wait. {NEXT}{call}", ("hm", "Wait.", calls)),
        (f"{A}hm{NEXT}{A}so{NEXT}{call}<|start|>assistant{F}yes", ("hm\n\nso", "yes", calls)),
        (f"{A}hm{NEXT}{F} yes ", ("hm", " yes ", [])),
    ):
        assert read_both([text]) == read_both(list(text)) == wanted


# Demanding


def matcher(otherwise: Otherwise = None, tools: Sequence[Tool] = TOOLS) -> LLMatcher:
    return matcher_by(form_of_addressed(SYNTAX, tools, otherwise), THEIRS)


@pytest.mark.parametrize("way", WAYS)
def test_calls_that_are_demanded_meet_their_schemas(way: str) -> None:
    found = matcher()
    weather, clock = way.format("get_weather"), way.format("clock")
    assert accepts(found, f'{weather}{{"city": "Oslo"}}') and accepts(found, f"{clock}{{}}")
    for text in (
        f"{weather}{{}}", f'{clock}{{"a": 1}}', f"{way.format('cloc')}{{}}", f"{F}yes", "yes",
        f"{clock}{{}}<|start|>assistant{clock}{{}}", f"{C}Wait.{NEXT}{clock}{{}}", f"{clock}",
    ):  # fmt: skip
        assert not accepts(found, text), text


def test_a_strict_tool_may_be_called_or_not() -> None:
    strict = Tool(WEATHER.name, None, WEATHER.parameters, is_strict=True)
    found = matcher(ANY_TEXT, [strict, CLOCK])
    weather, clock = WAYS[0].format("get_weather"), WAYS[1].format("clock")
    for text in (
        f"{F}yes, so.", f'{weather}{{"city": "Oslo"}}', f'{clock}{{"a": 1}}',
        f'{C}Wait.{NEXT}{weather}{{"city": "Oslo"}}',
    ):  # fmt: skip
        assert accepts(found, text), text
    for text in (f'{weather}{{"a": 1}}', "yes", f"{C}Wait."):
        assert not accepts(found, text), text


def test_an_answer_is_a_call_or_has_a_form_and_comes_after_what_is_thought() -> None:
    assert THOUGHTS is not None
    form = form_of_addressed(SYNTAX, TOOLS, {"type": "boolean"})
    prompt = joined(pieces_of(CHANNELS, Conversation([Message("user", "a")], TOOLS), prompt=True))
    alone = matcher_by(form, THEIRS)
    thoughtful = matcher_by(Thinking(THOUGHTS, prompt).before(form), THEIRS)
    for answer in (f"{F}true", f"{WAYS[1].format('clock')}{{}}"):
        assert accepts(alone, answer)
        assert accepts(thoughtful, answer) and accepts(thoughtful, f"{A}hm < 3{NEXT}{answer}")
        assert not accepts(alone, f"{A}hm{NEXT}{answer}")
    for answer in (f"{F}yes", "true", f"{F}{WAYS[1].format('clock')}{{}}"):
        assert not accepts(alone, answer) and not accepts(thoughtful, answer)
