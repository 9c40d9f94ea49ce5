"""Calls with ids and numbers: found out, read, demanded, and given back."""

import json

import pytest

from loramux_server.chat.messages import Call, Conversation, Message
from loramux_server.tools.call_reader import CallReader
from loramux_server.tools.histories import adapt_history
from loramux_server.tools.rendered_text import UnknownSyntaxError
from loramux_server.tools.syntax import COUNT, ID, Keys, joined
from tests.support.code_templates import COUNTED, LABELLED, NAMED
from tests.support.tool_syntaxes import (
    SYNTAXES,
    TOOLS,
    accepts,
    matcher_of,
    pieces_of,
    read,
    syntax_by,
)

# How a template writes them


def test_what_is_known_of_ids_and_numbers() -> None:
    named, counted, labelled = (SYNTAXES[name] for name in ("named", "counted", "labelled"))
    assert joined(named.opening) == "<calls><tool_call>functions."
    assert [piece.text for piece in named.middle] == [":", "", "<with>"]
    assert named.middle[1] == COUNT and named.is_named_by_id
    assert joined(named.separator or ()) == "</tool_call><tool_call>functions."
    assert [piece.text for piece in counted.head] == ['{"number": "', "", '", "tool": "']
    assert counted.head[1] == COUNT and counted.keys == Keys(None, "tool", "parameters")
    assert labelled.head[0] == ID and joined(labelled.head) == "[CALL_ID]"
    assert (joined(labelled.opening), joined(labelled.separator or ())) == ("[TOOL_CALLS]",) * 2
    assert [name for name, syntax in SYNTAXES.items() if syntax.is_named_by_id] == ["named"]


@pytest.mark.parametrize("number", ["loop.index0", "loop.index", "loop.index0 + 9"])
def test_a_template_may_count_calls_itself(number: str) -> None:
    source = NAMED.replace("call.id", f"call.function.name ~ '#' ~ ({number})")
    syntax = syntax_by(source)
    assert [piece.text for piece in syntax.middle] == ["#", "", "<with>"]
    assert syntax.middle[1] == COUNT and not syntax.is_named_by_id
    assert [piece.text for piece in SYNTAXES["ids"].middle] == ["[CALL_ID]", "", "[ARGS]"]


def test_a_template_may_make_up_ids_that_have_the_name() -> None:
    source = NAMED.replace("call.id", "'functions.' ~ call.function.name ~ ':' ~ loop.index0")
    assert syntax_by(source) == SYNTAXES["named"]
    assert not syntax_by(source.replace("<with>", "")).is_named_by_id  # nothing ends them


@pytest.mark.parametrize("source", [
    NAMED.replace("call.id", "call.function.name ~ '#' ~ loop.index0 * 2"),
    NAMED.replace("call.id", "call.function.name ~ loop.index0"),  # with which a name may end
    NAMED.replace("call.id", "'one'"),
    NAMED.replace("call.id", "call.id[:5]"),
    COUNTED.replace("loop.index0", "loop.revindex"),
    LABELLED.replace("call.id", "loop.index0"),  # which begins with another text each time
])  # fmt: skip
def test_what_is_counted_otherwise_is_not_known(source: str) -> None:
    with pytest.raises(UnknownSyntaxError):
        syntax_by(source)


def test_a_prompt_may_begin_and_end_a_thought_that_stands_before_calls() -> None:
    source = NAMED.replace("'<calls>'", "'<think></think>[TOOL_CALLS]'")
    prompt = source.replace(
        "assistant\\n' }}{% endif %}", "assistant\\n<think></think>' }}{% endif %}"
    )
    assert joined(syntax_by(prompt).opening) == "[TOOL_CALLS]<tool_call>functions."
    thoughts = source.replace("<think></think>", "<think>' + (message.thinking or '') + '</think>")
    assert joined(syntax_by(thoughts).opening) == "[TOOL_CALLS]<tool_call>functions."


# Reading them


@pytest.mark.parametrize(("written", "found"), [
    ("functions.get_weather:3", "functions.get_weather:3"),
    (" functions.get_weather:3 ", "functions.get_weather:3"),
    ("get_weather:3", "functions.get_weather:3"),
    ("functions.get_weather", "functions.get_weather:0"),
    ("get_weather", "functions.get_weather:0"),
    ("functions_get_weather_3", "functions.get_weather:3"),
    ("functionsget_weather3", "functions.get_weather:3"),
    ("functions.get_weather.v2:1", "functions.get_weather.v2:1"),  # which nobody offered
])  # fmt: skip
def test_the_name_is_found_in_an_id(written: str, found: str) -> None:
    for cut in (lambda text: [text], list):
        reader = CallReader(SYNTAXES["named"], TOOLS, most=None)
        text = f'<calls><tool_call>{written}<with>{{"city": "Oslo"}}</tool_call></calls>'
        (call,) = [call for piece in cut(text) for call in reader.push(piece).calls]
        assert (call.id, call.name) == (found, found.split(".", 1)[1].split(":")[0])
        assert json.loads(call.arguments) == {"city": "Oslo"}
        assert reader.flush() == ("", [])


@pytest.mark.parametrize(
    "written", ["call_abc123", "0", "", "functions.:0", "x" * 200, "my tool:0"]
)
def test_an_id_without_a_name_is_no_call(written: str) -> None:
    text = f"<calls><tool_call>{written}<with>{{}}</tool_call></calls>"
    assert read("named", text) == (text, [])
    assert read("named", text, lambda text: [text]) == (text, [])


def test_each_call_has_an_id_of_its_own() -> None:
    for name, call in (
        ("named", "<calls><tool_call>functions.clock:0<with>{}</tool_call></calls>"),
        ("labelled", "[TOOL_CALLS]a-1[CALL_ID]clock[ARGS]{}"),
        ("counted", '[TOOL_CALLS] [{"number": "0", "id": "1", "tool": "clock", "parameters": {}}]'),
    ):
        found = CallReader(SYNTAXES[name], TOOLS, most=None).push(call * 3).calls
        assert len({call.id for call in found}) == 3
        if name != "counted":
            assert found[0].id in call


@pytest.mark.parametrize("text", [
    '[TOOL_CALLS] [\n    {"number": "17", "tool": "clock", "parameters": {}}\n]',
    '[TOOL_CALLS]{"tool": "clock", "parameters": {}}',
    '[TOOL_CALLS] [{"parameters": {}, "tool": "clock", "number": 0}]',
])  # fmt: skip
def test_models_need_not_count(text: str) -> None:
    assert read("counted", text) == ("", [("clock", {})])


# Demanding them


@pytest.mark.parametrize(("name", "good", "bad"), [
    ("named", "<calls><tool_call>functions.clock:12<with>{}</tool_call></calls>", "functions."),
    ("counted", '[TOOL_CALLS] [\n    {"number": "3", "tool": "clock", "parameters": {}}\n]', "3"),
    ("labelled", "[TOOL_CALLS]abcDEF012[CALL_ID]clock[ARGS]{}", "abcDEF012"),
])  # fmt: skip
def test_ids_and_numbers_are_demanded_as_well(name: str, good: str, bad: str) -> None:
    matcher = matcher_of(name)
    assert accepts(matcher, name, good)
    assert not accepts(matcher, name, good.replace(bad, "" if name == "named" else "$"))


# Giving them back


def test_ids_of_others_get_the_names_of_their_tools() -> None:
    turns = [
        Message("user", "x"),
        Message("assistant", "", [Call("a", "clock", {}), Call("b", "get_weather", {"city": "O"})]),
        Message("tool", "2", call_id="b"),
        Message("tool", "1", call_id="a"),
        Message("assistant", "", [Call("functions.clock:7", "clock", {}), Call("a", "clock", {})]),
        Message("tool", "3", call_id="a"),
        Message("tool", "4", call_id="functions.clock:7"),
        Message("tool", "5", call_id="nobody"),
        Message("tool", "6"),
    ]
    taken = adapt_history(Conversation(turns, TOOLS), SYNTAXES["named"])
    assert [[call.id for call in turn.calls] for turn in taken.messages if turn.calls] == [
        ["functions.clock:0", "functions.get_weather:1"],
        ["functions.clock:7", "functions.clock:3"],
    ]  # fmt: skip
    assert [turn.call_id for turn in taken.messages if turn.role == "tool"] == [
        "functions.get_weather:1", "functions.clock:0", "functions.clock:3", "functions.clock:7",
        "nobody", "",
    ]  # fmt: skip
    assert "<tool_call>functions.get_weather:1<with>" in joined(pieces_of(NAMED, taken))
    for name in ("ids", "labelled"):
        assert adapt_history(Conversation(turns, TOOLS), SYNTAXES[name]) == Conversation(
            turns, TOOLS
        )
