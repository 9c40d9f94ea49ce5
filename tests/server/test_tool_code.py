"""Calls that are written as code: found out, read, and demanded."""

import json
import re
import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loramux_server.chat.messages import Call, Conversation, Message, Piece, Tool
from loramux_server.tools.arguments import MAX_DEPTH
from loramux_server.tools.call_reader import CallReader
from loramux_server.tools.code_reader import CodeReader
from loramux_server.tools.rendered_text import UnknownSyntaxError
from loramux_server.tools.syntax import Code, joined
from tests.support.code_templates import CODE_TEMPLATES, PYTHON, UNQUOTED
from tests.support.tool_parameters import ORDER, TRIP
from tests.support.tool_syntaxes import (
    OURS,
    SYNTAXES,
    THEIRS,
    accepts,
    matcher_of,
    pieces_of,
    read,
    syntax_by,
    written,
)

BEGIN, END = "<tool_call>[", "]</tool_call>"

# How a template writes them


def test_what_is_known_of_code() -> None:
    token = Piece("<arg_key>", True)
    round_brackets = ("(", "=", ", ", ")")
    assert {name: SYNTAXES[name].code for name in CODE_TEMPLATES} == {
        "json": Code(*round_brackets, Piece('"', False), quotes_all=False, is_python=False),
        "python": Code(*round_brackets, Piece("'", False), quotes_all=False, is_python=True),
        "lines": Code(*round_brackets, Piece("'", False), quotes_all=False, is_python=False),
        "braces": Code("{", ":", ",", "}", token, quotes_all=False, is_python=False),
        "quoted": Code(*round_brackets, Piece('"', False), quotes_all=True, is_python=True),
    }
    assert syntax_by(UNQUOTED).code == Code(*round_brackets, None, False, True)
    reported = {
        name: (joined(s.opening), s.separator and joined(s.separator), joined(s.closing))
        for name, s in SYNTAXES.items() if name in CODE_TEMPLATES
    }  # fmt: skip
    assert reported == {
        "json": ("[", ", ", "]"),
        "python": ("<tool_call>[", ", ", "]</tool_call>"),
        "lines": ("<calls>\n", "\n", "\n</calls>"),
        "braces": ("<tool_call>call:", "</tool_call><tool_call>call:", "</tool_call>"),
        "quoted": ("[", ", ", "]"),
    }
    assert "<arg_key>" in SYNTAXES["braces"].ids


@pytest.mark.parametrize(("written", "other"), [
    ("name + '='", "''"),  # values without names
    ("name + '='", "name + '-'"),
    ("name + '='", "name + '=$'"),
    ("', ' if not loop.last else ''", "'; ' if not loop.last else ''"),
    ("', ' if not loop.last else ''", "''"),
    ("value | string", "'<' + value | string + '>'"),
    ("value | string", "value | string | upper"),
    ("value | string", "'...'"),
    ("\"'\" + value", "'*' + value"),
    ("\"'\" + value", "\"'\" + value | upper"),
    ("\"'\" + value", "\"'\" + value | replace('\\\\', '')"),
    ("'<tool_call>['", "''"),  # any word could be a name
    ("call.function.name + '('", "call.function.name + '<'"),
    ("call.function.name + '('", "call.function.name + ' ('"),
    ("call.function.name + '('", "call.function.name + '(' + ('' if call.function.arguments "
     "else 'none')"),
])  # fmt: skip
def test_what_is_written_otherwise_is_not_known(written: str, other: str) -> None:
    assert written in PYTHON
    with pytest.raises(UnknownSyntaxError, match="unsupported syntax"):
        syntax_by(PYTHON.replace(written, other))


# Reading them


@pytest.mark.parametrize(("code", "wanted"), [
    ("", {}),
    ("a=1, b=-2.5, c=+7, d=1e3, e=.5", {"a": 1, "b": -2.5, "c": 7, "d": 1000.0, "e": 0.5}),
    ("a=True, b=False, c=None, d=true, e=false, f=null",
     {"a": True, "b": False, "c": None, "d": True, "e": False, "f": None}),
    ("a='x', b=\"y\", c='', d=\"\"", {"a": "x", "b": "y", "c": "", "d": ""}),
    (r"""a='it\'s', b="\"so\"", c='\\', d='\d+\.', e='\x41\u00e9\U0001F600'""",
     {"a": "it's", "b": '"so"', "c": "\\", "d": "\\d+\\.", "e": "Aé😀"}),
    (r'a="\ud83d\ude00\/\b", b="x\
y"', {"a": "😀/\b", "b": "xy"}),
    ("a='one\ntwo\n'", {"a": "one\ntwo\n"}),
    ('a="""one\n"two" \'three\'""", b=\'\'\'x\'\'\'', {"a": "one\n\"two\" 'three'", "b": "x"}),
    ("a=[1, 'b', [None, {}]], c={'d': {\"e\": [True]}}, f=(1, 2), g=[]",
     {"a": [1, "b", [None, {}]], "c": {"d": {"e": [True]}}, "f": [1, 2], "g": []}),
    (" a = 'x' ,\n b = [ 1 , 2 , ] , ", {"a": "x", "b": [1, 2]}),
    ("from=1, class='x', é=2, x-y=3", {"from": 1, "class": "x", "é": 2, "x-y": 3}),
    ("a=1, a=2", {"a": 2}),
    ("a='grep -F \"]\" (x', b='</tool_call>'", {"a": 'grep -F "]" (x', "b": "</tool_call>"}),
    # Quotes that should have been escaped.
    ("a='it's', b=\"say \"hi\"\"", {"a": "it's", "b": 'say "hi"'}),
    ("a='print('x', 'y')', b=1", {"a": "print('x', 'y')", "b": 1}),
    ("a='f('x')'", {"a": "f('x')"}),
    ("a='label='red'', b='', c=''x''", {"a": "label='red'", "b": "", "c": "'x'"}),
])  # fmt: skip
def test_code_is_read_as_it_is_meant(code: str, wanted: dict[str, Any]) -> None:
    for cut in (list, lambda text: [text], lambda text: re.findall("(?s).{1,5}", text)):
        assert read("python", f"{BEGIN}clock({code}){END}", cut) == ("", [("clock", wanted)])


@pytest.mark.parametrize("code", [
    "'x'", "1", "a", "a=", "a=b", "a=1 b=2", "a=1,,b=2", ",", "a=(1", "a=[1}", "*a",
    "**{'a': 1}", "a=b(1)", "a=1+1", "a=-", "a=1e999", "a=nan", "a=0x10", "a={1, 2}", "a=f'x'",
    "a=18446744073709551616", "a='\\ud800'", "a=" + "9" * 300, "x" * 300 + "=1", "a=[" * 2 + "1",
    "a=" + "[" * MAX_DEPTH + "]" * MAX_DEPTH, "a.__class__", "a=[x for x in ()]",
])  # fmt: skip
def test_what_is_no_call_is_text_as_it_was_written(code: str) -> None:
    text = f"{BEGIN}clock({code}){END}"
    assert read("python", text) == (text, [])
    assert read("python", text, lambda text: [text]) == (text, [])


@pytest.mark.parametrize(("name", "text"), [
    ("json", "See [1] (or not)."), ("json", "[see clock]"), ("json", "[other(a=1)]"),
    ("json", "clock(a=1)"), ("json", "[clock (a) is a word]"), ("python", "clock()"),
    ("python", "<tool_call>[my clock()]</tool_call>"), ("lines", "<calls>\nno\n</calls>"),
    ("braces", "<tool_call>call:clock(a:1)</tool_call>"),
])  # fmt: skip
def test_what_only_looks_like_a_call_is_text(name: str, text: str) -> None:
    assert read(name, text) == (text, [])
    assert read(name, text, lambda text: [text]) == (text, [])


@pytest.mark.parametrize(("name", "text"), [
    ("python", "<tool_call>\n [ clock ( ) , clock(),clock()\n]</tool_call>"),
    ("python", "<tool_call>[clock()]</tool_call><tool_call>[clock(), clock()]</tool_call>"),
    ("python", "<tool_call>[clock()\nclock() clock()"),
    ("python", "<tool_call>clock(), clock(), clock()</tool_call>"),
    ("json", "[clock(),\n clock(), clock()] "),
    ("lines", "<calls>clock()\nclock(), clock()</calls>"),
    ("braces", "<tool_call>call:clock{}<tool_call>call:clock{}<tool_call>clock{}</tool_call>"),
])  # fmt: skip
def test_models_are_not_that_exact(name: str, text: str) -> None:
    for cut in (list, lambda text: [text]):
        assert read(name, text, cut) == ("", [("clock", {})] * 3)


def test_what_closes_calls_may_be_left_out_at_the_end_of_an_answer() -> None:
    for name in ("json", "python", "lines"):
        begin = joined(SYNTAXES[name].opening)
        for code in ("a=1", "a='it's'", "a=1, b='x' "):
            assert len(read(name, f"{begin}clock({code})")[1]) == 1
        for code in ("a=1", "a='x'", "a='x', b", "a='x"):
            assert read(name, f"{begin}clock({code}") == (f"{begin}clock({code}", [])
    text = f"{BEGIN}clock(a='print('x')"
    reader = CallReader(SYNTAXES["python"], [Tool("clock")], most=None)
    assert reader.push(text) == ("", [])
    assert reader.flush(is_ended=False) == (text, [])


def test_names_may_have_dots() -> None:
    tool = Tool("calendar.events.create")
    text = f"{BEGIN}calendar.events.create(title='x'){END}"
    assert read("python", text, tools=[tool]) == ("", [(tool.name, {"title": "x"})])


def test_text_may_stand_before_and_after_code() -> None:
    calls: list[tuple[str, Any]] = [("clock", {"a": "it's"}), ("clock", {})]
    for name in ("python", "lines", "braces"):
        text = written(name, calls, "Let me (see) [x].")
        assert read(name, f"{text}\nDone (now).") == ("Let me (see) [x].Done (now).", calls)
    assert read("json", "[clock()]\nDone [1].") == ("Done [1].", [("clock", {})])


def test_strings_between_tokens_hold_whatever_else_there_is() -> None:
    value = 'it\'s "so", b:1}</tool_call>\\n\n'
    text = (
        f"<tool_call>call:clock{{a:<arg_key>{value}<arg_key>,b:[<arg_key>x<arg_key>]}}</tool_call>"
    )
    assert read("braces", text) == ("", [("clock", {"a": value, "b": ["x"]})])


def test_what_has_quotes_is_what_its_schema_says_where_all_has() -> None:
    arguments = {"city": "37", "days": 3, "ratio": 0.5, "warm": True, "stops": ["it's", "b"],
                 "unit": "c", "more": {"a": 1}}  # fmt: skip
    text = written("quoted", [("plan_trip", arguments)])
    assert text.startswith('[plan_trip(city="37", days="3", ratio="0.5", warm="True", stops="[')
    assert read("quoted", text, tools=[TRIP]) == ("", [("plan_trip", arguments)])
    bare = '[plan_trip(city="37", days=3, note="None", x="4")]'
    wanted = {"city": "37", "days": 3, "note": "None", "x": 4}
    assert read("quoted", bare, tools=[TRIP]) == ("", [("plan_trip", wanted)])


@pytest.mark.parametrize(("text", "wanted"), [
    ("city=San Francisco, CA, days=3", {"city": "San Francisco, CA", "days": 3}),
    ("city=10 Downing Street, unit=None", {"city": "10 Downing Street", "unit": None}),
    ("city='it's', unit=\"c\"", {"city": "it's", "unit": "c"}),
    ("city=, unit=x y", {"city": "", "unit": "x y"}),
    ("city=f(x) = 3, unit=-1", {"city": "f(x) = 3", "unit": -1}),
])  # fmt: skip
def test_strings_without_quotes_end_where_the_next_argument_begins(text: str, wanted: Any) -> None:
    for cut in ([f"[clock({text}), clock()]"], list(f"[clock({text}), clock()]")):
        reader = CallReader(syntax_by(UNQUOTED), [Tool("clock")], most=None)
        calls = [call for piece in cut for call in reader.push(piece).calls]
        assert [json.loads(call.arguments) for call in calls] == [wanted, {}]
        assert reader.flush() == ("", [])


# Whatever it holds

KEYS = st.from_regex("[a-z_]{1,5}", fullmatch=True)
SCALARS = (
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=12)
    | st.text(st.sampled_from("'\"\\,=)](x \n"), max_size=8)
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)  # fmt: skip
WRITERS: dict[str, Callable[[Any], str]] = {
    "python": repr,
    "json": json.dumps,
    "short": lambda value: json.dumps(value, ensure_ascii=False),
}


def cut_up(text: str, data: st.DataObject) -> list[str]:
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=6)))
    return [text[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]


@settings(max_examples=150)
@given(
    calls=st.lists(st.dictionaries(KEYS, VALUES, max_size=3), min_size=1, max_size=2),
    writer=st.sampled_from(sorted(WRITERS)), name=st.sampled_from(["python", "lines"]),
    data=st.data(),
)  # fmt: skip
def test_what_python_or_json_write_is_read_as_it_was(
    calls: list[dict[str, Any]], writer: str, name: str, data: st.DataObject
) -> None:
    begin, between, end = (joined(part or ()) for part in (
        SYNTAXES[name].opening, SYNTAXES[name].separator, SYNTAXES[name].closing,
    ))  # fmt: skip
    texts = [
        f"clock({', '.join(f'{key}={WRITERS[writer](value)}' for key, value in call.items())})"
        for call in calls
    ]
    text = begin + between.join(texts) + end
    pieces = cut_up(text, data)
    found = read(name, text, lambda _: pieces)
    assert json.dumps(found) == json.dumps(("", [("clock", call) for call in calls]))


@settings(max_examples=100)
@given(
    arguments=st.dictionaries(KEYS, VALUES, max_size=3), data=st.data(),
    name=st.sampled_from(["json", "lines", "braces"]),
)  # fmt: skip
def test_what_a_template_writes_is_read_as_it_was_given(
    arguments: dict[str, Any], name: str, data: st.DataObject
) -> None:
    if name == "braces" and "<arg_key>" in json.dumps(arguments):
        return
    text = written(name, [("clock", arguments)] * 2)
    pieces = cut_up(text, data)
    found = read(name, text, lambda _: pieces)
    assert json.dumps(found) == json.dumps(("", [("clock", arguments)] * 2))


PARTS = st.sampled_from([
    "<tool_call>", "[", "]", "clock", "(", ")", "a", "=", "'", '"', "'''", "\\", ",", " ", "\n",
    "1", "-", "None", "{", "}", ":", "</tool_call>", "clock(", "a='", "<arg_key>", "call:",
    "<calls>",
])  # fmt: skip


@settings(max_examples=400)
@given(
    parts=st.lists(PARTS, max_size=16), data=st.data(), name=st.sampled_from([*CODE_TEMPLATES]),
    is_begun=st.booleans(),
)  # fmt: skip
def test_however_a_text_is_cut_it_is_read_the_same(
    parts: list[str], name: str, is_begun: bool, data: st.DataObject
) -> None:
    opening, code = joined(SYNTAXES[name].opening), SYNTAXES[name].code
    assert code is not None
    text = (f"{opening}clock{code.begin}" if is_begun else "") + "".join(parts)
    pieces = cut_up(text, data)
    whole = read(name, text, lambda _: [text])
    assert read(name, text, lambda _: pieces) == whole
    if not whole[1]:
        assert whole[0] == text


# How much is looked at


def steps_of(pieces: Sequence[str], name: str) -> int:
    """Return how many functions are called to read what comes in pieces."""
    num_calls = 0

    def count(frame: FrameType, event: str, _: object) -> None:
        nonlocal num_calls
        num_calls += event in ("call", "c_call")

    reader = CallReader(SYNTAXES[name], [Tool("clock")], most=None)
    sys.setprofile(count)
    try:
        for piece in pieces:
            reader.push(piece)
    finally:
        sys.setprofile(None)
    return num_calls


ADVERSARIAL = [
    "'", '"', "\\", "', ", "', a", "')", "') ", "'), clock", "''", "a='", "[", "a=[", "{'a':", " ",
    "<tool_call>[clock(a='", "<tool_call>[clock(a=1 ", "<tool_call>[clock(", "<tool_call>",
    "clock(", "]</tool_call>", "1", "a=1,", "clock(),",
]  # fmt: skip


@pytest.mark.parametrize("name", ["python", "json", "braces"])
@pytest.mark.parametrize("piece", ADVERSARIAL)
def test_twice_the_text_takes_twice_the_steps(name: str, piece: str) -> None:
    code = SYNTAXES[name].code
    assert code is not None
    begin = f"{joined(SYNTAXES[name].opening)}clock{code.begin}a{code.assign}'"
    short, long = (steps_of([begin, *[piece] * number], name) for number in (400, 800))
    assert long < 2.2 * short + 200
    short, long = (steps_of([begin + piece * number], name) for number in (400, 800))
    assert long < 2.2 * short + 200


@pytest.mark.parametrize("piece", ADVERSARIAL)
def test_each_character_is_looked_at_a_few_times(piece: str) -> None:
    code = SYNTAXES["python"].code
    assert code is not None
    text = "(a='"
    reader = CodeReader(code, ["]"], 0)
    for char in piece * (2000 // len(piece)):
        text += char
        try:
            if reader.find(text) is not None:
                return
        except ValueError:
            return
        # What it looks at the next time.
        assert len(text) - max(reader.at, reader._seen) < 600


@pytest.mark.parametrize("depth", [MAX_DEPTH - 1, MAX_DEPTH, 100_000])
def test_brackets_lie_in_each_other_only_so_far(depth: int) -> None:
    text = f"{BEGIN}clock(a={'[' * depth}{']' * depth}){END}"
    assert bool(read("python", text, lambda text: [text])[1]) == (depth < MAX_DEPTH)


# Demanding them

SIMPLE = st.text(st.sampled_from('aé ,=)(][{}:\n"<'), max_size=20)
TRIPS = st.fixed_dictionaries(
    {"city": SIMPLE, "unit": st.sampled_from(["c", "f", "a b"])},
    optional={
        "days": st.integers(-99, 99),
        "ratio": st.floats(-9, 9),
        "warm": st.booleans(),
        "note": st.sampled_from([None, "", "none", " a\nb ", "{"]),
        "stops": st.lists(SIMPLE, max_size=2),
        "more": st.fixed_dictionaries({}, optional={"a": st.integers(-9, 9)}),
        "gone": st.none(),
    },
).map(lambda found: {key: found[key] for key in ORDER if key in found})
MATCHERS = {name: matcher_of(name, tools=[TRIP]) for name in CODE_TEMPLATES}


@settings(max_examples=60)
@given(arguments=TRIPS, name=st.sampled_from(["json", "lines", "braces"]))
def test_what_is_demanded_may_be_written_as_the_template_does(
    arguments: dict[str, Any], name: str
) -> None:
    text = written(name, [("plan_trip", arguments)])
    assert accepts(MATCHERS[name], name, text)
    assert read(name, text, tools=[TRIP]) == ("", [("plan_trip", arguments)])


@pytest.mark.parametrize("name", CODE_TEMPLATES)
def test_what_is_demanded_meets_its_schema(name: str) -> None:
    syntax, code = SYNTAXES[name], SYNTAXES[name].code
    assert code is not None

    def called(*arguments: str) -> str:
        given = code.comma.join(text.replace("=", code.assign, 1) for text in arguments)
        call = f"plan_trip{code.begin}{given}{code.end}"
        return joined(syntax.opening) + call + joined(syntax.closing)

    city, unit = 'city="Oslo"', 'unit="a b"'
    for good in ([city, unit], [city, "days=3", unit], [city, "warm=true", unit, "note=null"],
                 [r'city="\"\\"', unit], [city, unit, 'stops=["a", "b"]']):  # fmt: skip
        assert accepts(MATCHERS[name], name, called(*good)), good
    for bad in ([], [city], [unit], [unit, city], [city, 'unit="x"'], [city, "days=3.5", unit],
                ['city="' + "x" * 21 + '"', unit], [city, unit, 'stops=["a", "b", "c"]'],
                [city, unit, "other=1"], [city, unit, unit], ["city=Oslo", unit], [city, "", unit],
                [city, unit, "more={'a': 1}"]):  # fmt: skip
        assert not accepts(MATCHERS[name], name, called(*bad)), bad


@pytest.mark.parametrize("text", [
    "city='Oslo', unit='c', note=None, gone=None", "city='Oslo', warm=True, unit='c'",
    "city='s\\lo', unit='a b', note='x'",
])  # fmt: skip
def test_python_may_be_written_where_the_template_does(text: str) -> None:
    whole = f"{BEGIN}plan_trip({text}){END}"
    assert accepts(MATCHERS["python"], "python", whole)
    assert len(read("python", whole, tools=[TRIP])[1]) == 1
    assert not accepts(MATCHERS["json"], "json", f"[plan_trip({text})]")


@pytest.mark.parametrize("text", [
    r"city='O\'slo', unit='c'", r"city='Os\\lo', unit='c'", r"city='Oslo\', unit='c'",
    "city='" + "x" * 21 + "', unit='c'", "city='Oslo', unit='d'", "city='O', unit='c', note=True",
])  # fmt: skip
def test_strings_that_would_be_read_otherwise_are_not_written(text: str) -> None:
    assert not accepts(MATCHERS["python"], "python", f"{BEGIN}plan_trip({text}){END}")


def test_arguments_that_are_free_are_any_code() -> None:
    matcher = matcher_of("python", tools=[Tool("run", None, {"type": "object"})])
    for text in ("", "a=1", 'a=\'x\', b=None, c={"d": [true]}, e=True, f="y"'):
        assert accepts(matcher, "python", f"{BEGIN}run({text}){END}")
    assert not accepts(matcher, "python", f"{BEGIN}run(1){END}")


# What a template is given


def test_texts_in_lists_that_python_writes_are_those_of_the_caller() -> None:
    given = {"a": ["<b>", "it's", {"<k>": "é\U000f0000"}], "b": "\\U000f0001<"}
    conversation = Conversation(
        [Message("user", "x"), Message("assistant", "", [Call("c", "clock", given)])]
    )
    theirs = THEIRS.apply_chat_template(
        [turn.as_message() for turn in conversation.messages],
        chat_template=PYTHON,
        return_dict=False,
    )
    assert OURS.encode(pieces_of(PYTHON, conversation)) == theirs
