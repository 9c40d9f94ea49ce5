"""Calls whose parameters are written one by one: found out, and read."""

import sys
from types import FrameType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loramux_server.chat.messages import Tool
from loramux_server.tools.call_reader import CallReader
from loramux_server.tools.parameter_reader import Given, ParameterReader
from loramux_server.tools.rendered_text import UnknownSyntaxError
from loramux_server.tools.schemas import MAX_SCHEMAS, Allowance, ToolSchema
from loramux_server.tools.syntax import Parameters, joined
from loramux_server.tools.values import arguments_of, value_of
from tests.support.tool_parameters import CALLED, MATCHERS, NAMES, ORDER, TRIP, call_in, fanned
from tests.support.tool_syntaxes import (
    SYNTAXES,
    accepts,
    read,
    syntax_by,
    written,
)

# How a template writes them


def test_what_is_known_of_parameters() -> None:
    reported = {}
    for name in NAMES:
        found = SYNTAXES[name].parameters
        assert found is not None
        parts = (found.opening, found.between, found.between_others, found.closing)
        reported[name] = (*map(joined, parts), found.is_python)
    assert reported == {
        "elements": ("<parameter=", ">\n", ">\n", "\n</parameter>\n", True),
        "pairs": ("<arg_key>", *["</arg_key>\n<arg_value>"] * 2, "</arg_value>\n", False),
        "typed": ('<parameter name="', '" string="true">', '" string="false">',
                  "</parameter>\n", False),
        "marked": ('<@in@parameter name="', '" string="true">', '" string="false">',
                   "</@in@parameter>\n", False),
    }  # fmt: skip
    assert [piece.is_token for piece in SYNTAXES["pairs"].parameters.between] == [  # type: ignore[union-attr]
        True, False, True,
    ]  # fmt: skip
    assert set(SYNTAXES["pairs"].ids) == {
        "<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>",
    }  # fmt: skip


CALLS = (
    "{{ tools | tojson }}{% for m in messages %}<|im_start|>{{ m.content }}"
    "{% for c in m.tool_calls or [] %}CALL{% endfor %}<|im_end|>{% endfor %}"
)
CALL = "<tool_call>{{ c.function.name }}\nALL</tool_call>"
ALL = "{% for key, value in c.function.arguments.items() %}ONE{% endfor %}"
ONE = "<p>{{ key }}<v>{{ value }}</v>"


def parameters_by(call: str, one: str) -> Parameters | None:
    """Return what is known of a template that writes a call and each of its parameters so."""
    source = CALLS.replace("CALL", call).replace("ALL", ALL).replace("ONE", one)
    return syntax_by(source).parameters


@pytest.mark.parametrize(("call", "one"), [
    (CALL, "<p>{{ key }}<v>{{ value | trim | tojson }}</v>"),  # strings in quotes, and no others
    (CALL, "<p>{{ key }}<v>{{ value | replace('&', '&amp;') }}</v>"),
    (CALL, "<p>{{ key }}<v>{{ value | string | upper }}</v>"),
    (CALL, "<p>{{ key }}<v>{{ value if value is not none else '' }}</v>"),
    (CALL, "<p>{{ key }}<v>{{ value }}</v>{{ '!' if value is number else '' }}"),
    (CALL, "<p>{{ key }}{{ '<n>' if value is number else '<v>' }}{{ value }}</v>"),
    (CALL, "<p>{{ key }}{{ '<v n>' if value is number else '<v l>' if value is not string else "
     "'<v>' }}{{ value }}</v>"),
    (CALL, "<{{ key }}>{{ value }}</{{ key }}>"),
    (CALL, "{{ key }}={{ value }};"),
    (CALL, "{{ key }}: {{ value }}\n"),
    (CALL, "<p>{{ key }}{{ value }}</p>"),
    (CALL, "<p>{{ key }}<v>{{ value }}"),
    (CALL, "<p>{{ loop.index }} {{ key }}<v>{{ value }}</v>"),
    (CALL, ONE + "long " * 50),
    (CALL.replace("</tool_call>", ""), ONE),  # nothing tells where a call ends
    (CALL.replace("</tool_call>", "</{{ c.function.name }}>"), ONE),
    (CALL.replace("\n", " {{ c.function.name }}\n"), ONE),
    (CALL.replace("\n", "x"), ONE),  # with which a name could go on
    (CALL.replace("ALL", "ALL{{ '' if c.function.arguments else 'none' }}"), ONE),
    (CALL.replace("<tool_call>", ""), ONE),
])  # fmt: skip
def test_what_is_written_otherwise_is_not_known(call: str, one: str) -> None:
    assert parameters_by(CALL, ONE) is not None
    with pytest.raises(UnknownSyntaxError, match="unsupported syntax"):
        parameters_by(call, one)


# Reading them


TEXTS = st.text(max_size=20).filter(lambda text: "</" not in text)
ARGUMENTS = st.fixed_dictionaries(
    {"city": TEXTS, "unit": st.sampled_from(["c", "f", "a b"])},
    optional={
        "days": st.integers(-(1 << 63), (1 << 64) - 1),
        "ratio": st.floats(allow_nan=False, allow_infinity=False),
        "warm": st.booleans(),
        "note": st.sampled_from([None, "", "none", " a\nb ", "{"]),
        # What is no character of JSON's strings to the library that keeps schemas.
        "stops": st.lists(TEXTS.filter(lambda text: "\x7f" not in text), max_size=2),
        "more": st.fixed_dictionaries({}, optional={"a": st.integers(-9, 9)}),
        "gone": st.none(),
    },
).map(lambda found: {key: found[key] for key in ORDER if key in found})


@settings(max_examples=60)
@given(
    calls=st.lists(ARGUMENTS, min_size=1, max_size=2), name=st.sampled_from(NAMES), data=st.data()
)
def test_whatever_the_arguments_they_are_read_as_they_were_given(
    calls: list[dict[str, Any]], name: str, data: st.DataObject
) -> None:
    wanted = [("plan_trip", arguments) for arguments in calls]
    text = written(name, wanted)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=6)))
    pieces = [text[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    for cut in (list, lambda text: [text], lambda _: pieces):
        assert read(name, text, cut, tools=[TRIP]) == ("", wanted)
    assert accepts(MATCHERS[name], name, text)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("text", [
    "CLOSE", "a CLOSE b", "CLOSE\nOPEN!", "OPEN", "OPENcity", "END", "CLOSE\nEN", "\nCLOSE\n" * 3,
    " \n ", "<tool_call>", "{", '"', "CLOSECLOSE\nx", "CLOSE\n" + " " * 300 + "x",
    "CLOSE" + "\n" * 300,
])  # fmt: skip
def test_a_value_may_hold_marks_that_end_nothing(name: str, text: str) -> None:
    way = SYNTAXES[name].parameters
    assert way is not None
    end = joined(SYNTAXES[name].closing).split()[0].removesuffix("e")
    for word, mark in (("CLOSE", joined(way.closing).strip()), ("END", end),
                       ("OPEN", joined(way.opening)[:-2])):  # fmt: skip
        text = text.replace(word, mark)
    found = ("plan_trip", {"city": text, "unit": "c"})
    whole = written(name, [found, found])
    assert read(name, whole, tools=[TRIP]) == ("", [found, found])
    assert read(name, whole, lambda whole: [whole], tools=[TRIP]) == ("", [found, found])
    for at in range(len(whole)):
        assert read(name, whole, lambda _, at=at: [whole[:at], whole[at:]], tools=[TRIP]) == (  # type: ignore[misc]
            "", [found, found],
        )  # fmt: skip


@pytest.mark.parametrize("text", [
    "<tool_call><function=plan_trip><parameter=city>Oslo</parameter><parameter=unit>c</parameter>"
    "</function></tool_call>",
    "<tool_call>\n\n<function=plan_trip>\n\n<parameter=city>\nOslo\n</parameter>\n\n"
    "<parameter= unit >\nc\n</parameter>\n</function>",
    "<tool_call>\n<function=plan_trip>\n<parameter=city>\nOslo\n</parameter>\n<parameter=unit>\nc\n"
    "</parameter>\n</tool_call>",
    "<tool_call>\n<function=plan_trip>\n<parameter=city>\nRome\n</parameter>\n<parameter=unit>\nc\n"
    "</parameter>\n<parameter=city>\nOslo\n</parameter>\n</function>",
])  # fmt: skip
def test_models_are_not_that_exact(text: str) -> None:
    assert read("elements", text, tools=[TRIP]) == ("", [("plan_trip", CALLED)])


@pytest.mark.parametrize(("name", "text"), [
    ("elements", "<tool_call>\n<function=plan_trip>\n<parameter=city>\nOslo\n</parameter>\n"),
    ("elements", "<tool_call>\n<function=plan_trip>\n<parameter=city>\nOslo\n</parameter>\nso"),
    ("elements", "<tool_call>\n<function=plan_trip>\n<parameter=city>\nOslo\n</function>\n"
     "</tool_call>"),
    ("elements", "<tool_call>\n<function=plan_trip>\nOslo\n</function>\n</tool_call>"),
    ("elements", "<tool_call>\n<function=plan trip>\n</function>\n</tool_call>"),
    ("elements", "<tool_call>\n<function=plan_trip>\n<parameter=" + "x" * 300 + ">\n"),
    ("elements", '<tool_call>\n{"name": "plan_trip", "arguments": {}}\n</tool_call>'),
    ("pairs", "<tool_call>plan_trip\n<arg_key>city</arg_key>\nOslo</arg_value>\n</tool_call>"),
    ("pairs", "<tool_call>plan_trip or not\n</tool_call>"),
    ("pairs", "<tool_call>" + "x" * 65 + "\n</tool_call>"),
    ("typed", '<calls>\n<invoke name="plan_trip">\n<parameter name="city">Oslo</parameter>\n'),
    ("typed", '<calls>\n<invoke name="plan_trip">\nso\n</invoke>\n</calls>'),
])  # fmt: skip
def test_what_is_no_call_is_text_as_it_was_written(name: str, text: str) -> None:
    assert read(name, text, tools=[TRIP]) == (text, [])
    assert read(name, text, lambda whole: [whole], tools=[TRIP]) == (text, [])


@pytest.mark.parametrize("name", NAMES)
def test_text_may_stand_before_and_after_calls(name: str) -> None:
    calls = [("plan_trip", CALLED), ("plan_trip", {})]
    text = written(name, calls, "Let me <b>see</b>.")
    assert read(name, f"{text}\nDone.", tools=[TRIP]) == ("Let me <b>see</b>.Done.", calls)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "piece", ["x", " ", "\n", "CLOSE", "CLOSE\n", "CLOSE OPEN", "<", "</", "OPEN"]
)
def test_each_character_of_a_value_is_looked_at_a_few_times(name: str, piece: str) -> None:
    way, ends = SYNTAXES[name].parameters, joined(SYNTAXES[name].closing).split()
    assert way is not None
    piece = piece.replace("CLOSE", joined(way.closing).strip()).replace("OPEN", "<para")
    text = f"{joined(way.opening)}city{joined(way.between)}"
    reader = ParameterReader(way, ends, 0)
    for char in [text, *piece * (3000 // len(piece))]:
        text += char
        assert reader.find(text) is None
        # What it looks at the next time.
        assert len(text) - reader._seen < 600
        assert not reader.found


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("piece", [" ", "\n", "x", "CLOSE", "BEGIN"])
def test_little_is_held_of_what_may_become_a_call(name: str, piece: str) -> None:
    begin = joined(SYNTAXES[name].opening)
    piece = piece.replace("CLOSE", joined(SYNTAXES[name].closing)).replace("BEGIN", begin)
    for before in (begin, f"{begin}plan_trip", call_in(name)):
        reader = CallReader(SYNTAXES[name], [TRIP], most=None)
        reader.push(before)
        for _ in range(3000):
            reader.push(piece)
            assert len(reader._held.text) < 2100


@pytest.mark.parametrize("name", NAMES)
def test_what_was_no_parameter_is_not_read_again(name: str) -> None:
    way = SYNTAXES[name].parameters
    assert way is not None
    begin = f"{joined(SYNTAXES[name].opening)}plan_trip{joined(SYNTAXES[name].middle)}"
    value = f"{joined(way.opening)}city{joined(way.between)}"
    text = (begin + value) * 100 + joined(way.closing) + joined(way.opening) + "x" * 300
    num_readings = 0

    def count(frame: FrameType, event: str, _: object) -> None:
        nonlocal num_readings
        num_readings += event == "call" and frame.f_code is ParameterReader.find.__code__

    reader = CallReader(SYNTAXES[name], [TRIP], most=None)
    sys.setprofile(count)
    try:
        found = reader.push(text)
    finally:
        sys.setprofile(None)
    assert (found.text + reader.flush().text, found.calls, num_readings) == (text, [], 1)


# What a text means


STRING, INTEGER, UNKNOWN = frozenset({"string"}), frozenset({"integer"}), None


def nested(depth: int) -> list[Any]:
    """Return arrays in each other, the innermost of them empty."""
    return [nested(depth - 1)] if depth > 1 else []


@pytest.mark.parametrize(("text", "kinds", "is_python", "value"), [
    ("12", STRING, False, "12"), ("null", STRING, True, "null"), ('"a"', STRING, False, '"a"'),
    ("12", {"integer"}, False, 12), (" 12\n", {"integer"}, False, 12),
    ("x", {"integer"}, False, "x"),
    ("1.5", {"number"}, False, 1.5), ("01", {"number"}, False, "01"),
    ("NaN", {"number"}, True, "NaN"),
    ("true", {"boolean"}, True, True), ("True", {"boolean"}, False, True),
    ("TRUE", {"boolean"}, False, "TRUE"), ("None", {"null"}, False, None),
    ("", {"integer"}, False, ""),
    ("[1, 2]", {"array"}, False, [1, 2]), ("[1, 2", {"array"}, False, "[1, 2"),
    ("{'a': 'it\\'s \"é\\n\\x41\\u00e9\\U0001f600', 'True': True}", {"object"}, False,
     {"a": "it's \"é\nAé😀", "True": True}),
    ('{"it\'s": [None, False, "None"]}', {"object"}, False, {"it's": [None, False, "None"]}),
    ("{'a': 'b\\'}", {"object"}, False, "{'a': 'b\\'}"), ("'abc", {"object"}, False, "'abc"),
    ("{'\\ud800': 1}", {"object"}, False, "{'\\ud800': 1}"),
    ("[" * 2000, {"array"}, False, "[" * 2000),
    ("'" * 20000, {"object"}, False, "'" * 20000),
    ("'\\" * 20000, {"object"}, False, "'\\" * 20000),
    ("12", UNKNOWN, False, 12), ("x", UNKNOWN, False, "x"), ('"a"', UNKNOWN, False, '"a"'),
    ("None", UNKNOWN, False, "None"), ("None", UNKNOWN, True, None),
    ("1e999", UNKNOWN, False, "1e999"),
    ("null", {"string", "null"}, False, None), ("12", {"string", "null"}, False, "12"),
    ("12", {"string", "number"}, False, 12), ("1.5", {"string", "integer"}, False, "1.5"),
    ("[1]", {"string", "object"}, False, "[1]"), ("None", {"string", "null"}, True, None),
    ("1" * 22, UNKNOWN, False, "1" * 22), ("1" * 22, {"integer"}, False, "1" * 22),
    (f"{(1 << 64) - 1}", UNKNOWN, False, (1 << 64) - 1),
    (f"{1 << 64}", UNKNOWN, True, f"{1 << 64}"),
    (f"['a', {1 << 64}]", {"array"}, False, f"['a', {1 << 64}]"),
    ("[" * 63 + "]" * 63, {"array"}, False, nested(63)),
    ("[" * 64 + "]" * 64, {"array"}, False, "[" * 64 + "]" * 64),
])  # fmt: skip
def test_a_text_has_the_type_that_the_schema_says(
    text: str, kinds: set[str] | None, is_python: bool, value: Any
) -> None:
    known = None if kinds is None else frozenset(kinds)
    found = value_of(Given("a", text, None), known, is_python=is_python)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(("text", "is_string", "value"), [
    ("12", True, "12"), ("12", False, 12), ("x", False, "x"), ("null", True, "null"),
])  # fmt: skip
def test_a_mark_of_strings_takes_precedence_over_the_schema(
    text: str, is_string: bool, value: Any
) -> None:
    assert value_of(Given("a", text, is_string), STRING, is_python=False) == value
    assert value_of(Given("a", text, is_string), frozenset({"integer"}), is_python=False) == value


@pytest.mark.parametrize(("schema", "kinds"), [
    ({"type": "string"}, {"string"}), ({"type": ["integer", "null"]}, {"integer", "null"}),
    ({"enum": ["a", 1, None, True, 1.5, [], {}]},
     {"string", "integer", "null", "boolean", "number", "array", "object"}),
    ({"const": "a"}, {"string"}), ({"$ref": "#/$defs/word"}, {"string"}),
    ({"enum": ["1", 1], "type": "integer"}, {"integer"}),
    ({"enum": [1], "type": "unknown"}, {"integer"}),
    ({"$ref": "#/$defs/a~1b"}, {"integer"}), ({"allOf": [{"$ref": "#/$defs/word"}]}, {"string"}),
    ({"anyOf": [{"type": "string"}, {"$ref": "#/$defs/many"}]}, {"string", "array", "null"}),
    ({}, None), (True, None), (False, None), ({"$ref": "#/$defs/round"}, None),
    ({"$ref": "#/$defs/none"}, None), ({"$ref": "http://a/b"}, None), ({"$ref": 3}, None),
    ({"$ref": "#/$defs/word" + "/" * 1100}, None),
    ({"anyOf": 3}, None), ({"anyOf": [{"type": "string"}, {}]}, None), ({"anyOf": [3]}, None),
    ({"allOf": [{"type": "string"}, {"maxLength": 3}]}, None), ({"type": 3}, None),
])  # fmt: skip
def test_the_types_in_a_schema(schema: Any, kinds: set[str] | None) -> None:
    parts = {
        "word": {"type": "string", "title": "Word"},
        "a/b": {"type": "integer"},
        "many": {"oneOf": [{"type": "array"}, {"type": "null"}]},
        "round": {"$ref": "#/$defs/round"},
    }
    assert ToolSchema({"$defs": parts}, Allowance()).kinds(schema) == kinds


def test_what_is_not_known_is_read_as_it_looks() -> None:
    given = [Given("a", "1", None), Given("b", "x", None), Given("a", "2", None)]
    for tool in (None, Tool("t"), Tool("t", None, {"properties": 3}), Tool("t", None, {})):
        assert arguments_of(given, tool, is_python=False) == {"a": 2, "b": "x"}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("text", ["1" * 30, "[" * 70 + "]" * 70, "[" * 63 + "]" * 63])
def test_a_call_is_not_lost_for_a_value_that_no_arguments_may_have(name: str, text: str) -> None:
    ((_, arguments),) = read(name, call_in(name, ("days", "2"), ("a", text)), tools=[TRIP])[1]
    if name in ("elements", "pairs"):
        assert arguments == {"days": 2, "a": nested(63) if len(text) == 126 else text}
    else:  # where it is told that both are strings
        assert arguments == {"days": "2", "a": text}


def test_types_are_looked_for_in_so_many_schemas() -> None:
    first = {"$ref": "#/$defs/p0"}
    for width, kinds in ((2, INTEGER), (3, UNKNOWN), (20, UNKNOWN)):
        schema = ToolSchema({"$defs": fanned(width, {"type": "integer"})}, Allowance())
        assert schema.kinds(first) == kinds
    # A list of values counts as often as it is referred to.
    many = {"enum": [1] * 784}
    for num_times, kinds in ((9, INTEGER), (10, INTEGER), (11, UNKNOWN)):
        schema = ToolSchema({"$defs": {"p0": many}}, Allowance())
        assert schema.kinds({"anyOf": [first] * num_times}) == kinds
    schema = ToolSchema({}, Allowance())
    assert [schema.kinds({"type": "null"}) for _ in range(MAX_SCHEMAS)][-1] is not None
    assert schema.kinds({"type": "null"}) is None


def test_a_call_of_a_schema_that_is_too_large_is_read_as_it_looks() -> None:
    root = {"properties": {"a": {"$ref": "#/$defs/p0"}}, "$defs": fanned(20, {"type": "string"})}
    tool = Tool("plan_trip", None, root)
    text = call_in("elements", ("a", "1"), ("b", "x"))
    assert read("elements", text, tools=[tool]) == ("", [("plan_trip", {"a": 1, "b": "x"})])
