"""Demanding calls whose parameters are written one by one."""

import random
import tracemalloc
from typing import Any

import pytest
from llguidance import LLMatcher

from loramux.errors import InvalidArgumentError
from loramux.v1 import generation_pb2
from loramux_server.chat.messages import Tool
from loramux_server.services.generation.tool_use import ToolUse
from loramux_server.tools.form import ANY_TEXT, UnknownToolSchemaError, form_of_calls
from loramux_server.tools.rules import LargeRulesError
from loramux_server.tools.syntax import joined
from loramux_server.wire.model_info import ModelInfo
from tests.support.engine_sizes import sizes_of
from tests.support.tool_parameters import (
    CALLED,
    MATCHERS,
    NAMES,
    ORDER,
    TRIP,
    call_in,
    fanned,
    reported,
)
from tests.support.tool_syntaxes import (
    SYNTAXES,
    THEIRS,
    accepts,
    matcher_of,
    read,
    written,
)

MODEL = ModelInfo(
    name="tiny", architecture="LlamaForCausalLM", fingerprint="sha256:0", dtype="float32",
    device="cpu", context_length=1000, vocab_size=len(THEIRS), num_parameters=1, eos_token_ids=[1],
    tokenizer_json="{}", layers={}, adapter_rows=8, max_running=8, num_blocks=8,
    sizes=sizes_of(),
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("wrong", [
    {"unit": "c"}, {"city": "Oslo"}, {"city": "Oslo", "unit": "d"}, {"unit": "c", "city": "Oslo"},
    {"city": "Oslo" * 6, "unit": "c"}, {**CALLED, "more": {"a": "x"}}, {**CALLED, "else": 1},
    {**CALLED, "stops": ["a", "b", "c"]}, {**CALLED, "more": {"b": 1}}, {**CALLED, "gone": 1},
    {"city": "Oslo", "days": 1.5, "unit": "c"}, {"city": "Oslo", "days": "x", "unit": "c"},
    {"city": "Oslo", "warm": "yes", "unit": "c"}, {"city": 3, "unit": None}, {},
])  # fmt: skip
def test_what_does_not_meet_the_schema_is_not_written(name: str, wrong: dict[str, Any]) -> None:
    assert accepts(MATCHERS[name], name, reported(name, CALLED))
    assert not accepts(MATCHERS[name], name, reported(name, wrong))


@pytest.mark.parametrize("name", NAMES)
def test_a_value_cannot_pose_as_the_end_of_it(name: str) -> None:
    way = SYNTAXES[name].parameters
    assert way is not None
    closing, opening, between = map(joined, (way.closing, way.opening, way.between))
    forged = f"x{closing}{opening}unit{between}zzz"
    assert not accepts(MATCHERS[name], name, call_in(name, ("city", forged)))
    # Nor what looks like a token and is none.
    begin = reported(name, CALLED).partition("Oslo")[0]
    tokens = THEIRS(begin, add_special_tokens=False).input_ids
    mark = [token for char in f"x{closing.strip()}y" for token in THEIRS(char).input_ids]
    taken = MATCHERS[name].deep_copy().try_consume_tokens(tokens + mark)
    assert len(tokens) < taken < len(tokens + mark)


def drawn(matcher: LLMatcher, seed: int) -> str:
    """Return a text of the form, at random."""
    chance, fresh = random.Random(seed), matcher.deep_copy()
    tokens: list[int] = []
    while not fresh.is_accepting() and len(tokens) < 4000:
        bits = int.from_bytes(fresh.compute_bitmask(), "little")
        allowed = [token for token in range(len(THEIRS)) if bits >> token & 1]
        token = chance.choice(allowed)
        assert fresh.consume_token(token)
        tokens.append(token)
    assert fresh.is_accepting()
    return str(THEIRS.decode(tokens))


@pytest.mark.parametrize("name", NAMES)
def test_whatever_is_written_in_the_form_is_read_and_meets_the_schema(name: str) -> None:
    assert TRIP.parameters is not None
    small = {"minimum": -1000, "maximum": 1000}  # others may be too large for anybody
    known = TRIP.parameters["properties"]
    bounded = {"days": known["days"] | small, "ratio": known["ratio"] | small}
    tool = Tool("plan_trip", None, TRIP.parameters | {
        "required": ORDER, "properties": known | bounded,
    })  # fmt: skip
    matcher = matcher_of(name, tools=[tool], is_parallel=False)
    for seed in range(8):
        text, ((called, arguments),) = read(name, drawn(matcher, seed), tools=[tool])
        assert (text, called, list(arguments)) == ("", "plan_trip", ORDER)
        assert isinstance(arguments["city"], str) and len(arguments["city"]) <= 20
        assert type(arguments["days"]) is int and -1000 <= arguments["days"] <= 1000
        assert type(arguments["ratio"]) in (int, float) and -1000 <= arguments["ratio"] <= 1000
        assert type(arguments["warm"]) is bool and arguments["unit"] in ("c", "f", "a b")
        assert arguments["note"] is None or len(arguments["note"]) <= 20
        assert len(arguments["stops"]) <= 2 and all(len(each) <= 20 for each in arguments["stops"])
        assert arguments["more"].keys() <= {"a"} and arguments["gone"] is None


@pytest.mark.parametrize("name", NAMES)
def test_any_arguments_may_be_given_to_tools_that_are_not_strict(name: str) -> None:
    strict = Tool("clock", None, {"properties": {"at": {"const": "noon"}}}, is_strict=True)
    matcher = matcher_of(name, ANY_TEXT, tools=[TRIP, strict])
    for call, is_taken in (
        (("plan_trip", {"anything": "at </all>", "n": [1, {"a": None}]}), True),
        (("plan_trip", {}), True), (("clock", {"at": "noon"}), True), (("clock", {}), True),
        (("clock", {"at": "night"}), False), (("clock", {"in": "noon"}), False),
    ):  # fmt: skip
        assert accepts(matcher, name, "Well. " + written(name, [call]).lstrip()) == is_taken
        if name not in ("typed", "marked"):
            assert accepts(matcher, name, written(name, [call])) == is_taken


def form_with(name: str, schema: dict[str, Any]) -> LLMatcher:
    return matcher_of(name, tools=[Tool("plan_trip", None, schema)])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("schema", "good", "bad"), [
    ({"type": "string", "pattern": "^a+$"}, ["a", "aaa"], ["", "ba", "ab", "a\n"]),
    ({"type": "string", "pattern": "a|b"}, ["a", "xbx\n"], ["", "x"]),
    ({"type": "string", "pattern": "^(a/|b\\$)[$^|/]"}, ["a/$", "b$^x"], ["a$", "xa/$"]),
    ({"type": "string", "pattern": "[0-9]$", "minLength": 2, "maxLength": 3}, ["a1", "ab1"],
     ["1", "abc1", "1a"]),
    ({"type": "string", "format": "date"}, ["2024-02-29"], ["2024-13-01", "x2024-02-29", ""]),
    ({"type": "string", "format": "date-time"}, ["2024-02-29T10:00:00Z"], ["2024-02-29"]),
    ({"type": "string", "format": "uuid"}, ["12345678-1234-1234-1234-123456789abc"], ["1"]),
    ({"type": "string", "minLength": 1}, ["a", "\n"], [""]),
    ({"type": "string", "minLength": 2.0, "maxLength": 3.0}, ["ab", "abc"], ["a", "abcd"]),
    ({"type": "string", "maxLength": 0}, [""], ["a"]),
    ({"type": ["string", "null"], "description": "x"}, ["a", "", None], []),
    ({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "integer"}}]},
     ["a", [1, 2], "{"], [["a"], "[x", " [1, 'a']"]),
    ({"anyOf": [{"type": "string", "maxLength": 1}, {"type": "integer", "minimum": 5}]},
     ["a", 7], ["ab", 3, "3", " 3"]),
    ({"enum": ["a", 1, None]}, ["a", 1, None], ["b", 2, True]),
    ({"const": "a\nb"}, ["a\nb"], ["a"]), ({"enum": [True]}, [True], [False]),
    ({"type": "integer", "enum": ["a", 1, 2.0, 2.5, True]}, [1, 2], ["a", 2.5, True]),
    ({"type": ["number", "null"], "enum": [1, None, "a"]}, [1, None], ["a"]),
    ({"type": "string", "const": "a", "enum": ["a", "b"]}, ["a"], ["b"]),
    ({"$ref": "#/$defs/word"}, ["ab"], ["abc"]),
    ({"type": "array", "items": {"$ref": "#/$defs/word"}}, [["ab"], []], [["abc"]]),
    ({"items": {"type": "null"}}, [[None]], [[1]]),
    ({"properties": {"a": {"const": 1}}, "required": ["a"]}, [{"a": 1}], [{}]),
    ({"oneOf": [{"type": "boolean"}, {"type": "null"}]}, [True, None], [1, "a"]),
    ({"type": "boolean"}, [True, False], [None, 1]),
])  # fmt: skip
def test_a_parameter_has_the_form_of_its_schema(
    name: str, schema: dict[str, Any], good: list[Any], bad: list[Any]
) -> None:
    matcher = form_with(name, {
        "properties": {"a": schema}, "required": ["a"],
        "$defs": {"word": {"type": "string", "maxLength": 2}},
    })  # fmt: skip
    for value in good:
        assert accepts(matcher, name, reported(name, {"a": value})), value
    for value in bad:
        # What begins as no string may is a string where that is told.
        if name not in ("typed", "marked") or not isinstance(value, str) or "anyOf" not in schema:
            assert not accepts(matcher, name, reported(name, {"a": value})), value


@pytest.mark.parametrize("name", NAMES)
def test_parameters_without_a_schema_may_be_anything(name: str) -> None:
    schemas: list[dict[str, Any]] = [
        {}, {"type": "object"}, {"required": ["a"]}, {"properties": {"a": {}}},
        {"properties": {"a": True, "b": False}, "additionalProperties": True},
    ]  # fmt: skip
    for schema in schemas:
        matcher = form_with(name, schema)
        assert accepts(matcher, name, reported(name, {"a": "x y"}))
        assert accepts(matcher, name, reported(name, {})) == ("required" not in schema)
    nothing = form_with(name, {"properties": {}, "additionalProperties": False})
    assert accepts(nothing, name, reported(name, {}))
    assert not accepts(nothing, name, reported(name, {"a": "x"}))


@pytest.mark.parametrize(("schema", "message"), [
    ({"minProperties": 1}, "uses 'minProperties'"), ({"anyOf": []}, "uses 'anyOf'"),
    ({"properties": 3}, "not an object"), ({"required": 3}, "has 'required' that is 3,"),
    ({"required": [5]}, r"has 'required' that is \[5\]"), ({"required": [{}]}, r"is \[{}\], which"),
    ({"required": ["a", None]}, r"is \['a', None\], which is not a list of names"),
    ({"additionalProperties": {"type": "string"}}, "'additionalProperties' that is a schema"),
    ({"properties": {"a": False}, "required": ["a"]}, "a schema that matches nothing"),
    ({"properties": {"": {}}}, "ambiguous"), ({"properties": {" a": {}}}, "whose end is ambiguous"),
    ({"properties": {"a>\"</arg_key>": {}}}, "ambiguous"),
    ({"properties": {"a" * 300: {}}}, "ambiguous"),
    ({"properties": {"a": {"type": "string", "format": "email"}}}, "the format 'email'"),
    ({"properties": {"a": {"type": "string", "not": {}}}}, "uses 'not' for a string"),
    ({"properties": {"a": {"type": "string", "pattern": "^a|b"}}}, "partly anchored"),
    ({"properties": {"a": {"type": "string", "pattern": "a(^b)"}}}, "partly anchored"),
    ({"properties": {"a": {"type": "string", "pattern": "a)|(b"}}}, "which is not valid"),
    ({"properties": {"a": {"type": "string", "pattern": "a\\"}}}, "which is not valid"),
    ({"properties": {"a": {"type": "string", "pattern": 5}}}, "'pattern' that is 5, which is n"),
    ({"properties": {"a": {"type": "string", "format": []}}}, r"'format' that is \[\], which is n"),
    ({"properties": {"a": {"type": "string", "minLength": 1.5}}}, "'minLength' that is 1.5, which"),
    ({"properties": {"a": {"type": "string", "minLength": -1}}}, "'minLength' that is -1, which"),
    ({"properties": {"a": {"type": "string", "maxLength": True}}}, "'maxLength' that is True"),
    ({"properties": {"a": {"type": "string", "maxLength": "0}|(x{1"}}}, "which is not a length"),
    ({"properties": {"a": {"type": "string", "maxLength": {}}}}, "'maxLength' that is {}, which"),
    ({"properties": {"a": {"type": "string", "maxLength": None}}}, "'maxLength' that is None"),
    ({"properties": {"a": {"enum": 5}}}, "'a', which has 'enum' that is 5, which is not a list"),
    ({"properties": {"a": {"enum": "abc"}}}, "has 'enum' that is 'abc', which is not a list"),
    ({"properties": {"a": {"minimum": 3}}}, "has no type"),
    ({"properties": {"a": {"type": "text", "minimum": 3}}}, "has the unknown type 'text'"),
    ({"properties": {"a": {"enum": []}}}, "allows no value"),
    ({"properties": {"a": {"enum": [1], "type": "string"}}}, "allows no value"),
    ({"properties": {"a": {"enum": [1, "b"], "const": True}}}, "allows no value"),
    ({"properties": {"a": {"enum": ["a"], "maxLength": 3}}}, "'maxLength' with 'const'"),
    ({"properties": {"a": {"anyOf": [{}], "type": "string"}}}, "'type' with 'anyOf'"),
    ({"properties": {"a": {"$ref": "#/x"}}}, "refers to '#/x'"),
    ({"properties": {"a": {"oneOf": [{"type": "number"}, {"type": "integer"}]}}}, "same type"),
    ({"properties": {"a": {"enum": ["</parameter></arg_value></@in@parameter>"]}}},
     "parsed as another one"),
])  # fmt: skip
def test_what_cannot_be_kept_is_said(schema: dict[str, Any], message: str) -> None:
    for name in NAMES:
        with pytest.raises(UnknownToolSchemaError, match=message):
            form_with(name, schema)
    assert form_of_calls(SYNTAXES["tags"], [Tool("t", None, schema)], None, is_parallel=True)


def test_a_word_that_would_be_read_as_something_else_is_refused() -> None:
    for name in ("elements", "pairs"):
        with pytest.raises(UnknownToolSchemaError, match="'1', which would be parsed as another"):
            form_with(name, {"properties": {"a": {"enum": ["1", 1]}}})
    assert accepts(
        form_with("typed", {"properties": {"a": {"enum": ["1", 1]}}}),
        "typed",
        reported("typed", {"a": "1"}),
    )


def test_a_schema_may_not_make_more_of_itself_than_can_be_kept() -> None:
    for width in (1, 2, 3, 20):
        parts = fanned(width, {"type": "integer"})
        schema = {"properties": {"a": {"$ref": "#/$defs/p0"}}, "$defs": parts}
        if width < 3:
            assert accepts(
                form_with("elements", schema), "elements", reported("elements", {"a": 3})
            )
        else:
            with pytest.raises(UnknownToolSchemaError, match="'a', which brings the schemas of"):
                form_with("elements", schema)
    # And all tools together.
    parts = fanned(2, {"type": "null"})
    tools = [
        Tool(name, None, {"properties": {"a": {"$ref": "#/$defs/p0"}}, "$defs": parts})
        for name in ("first", "second", "third")
    ]
    assert form_of_calls(SYNTAXES["elements"], tools[:1], None, is_parallel=True)
    with pytest.raises(UnknownToolSchemaError, match="1024, each counted") as found:
        form_of_calls(SYNTAXES["elements"], tools, None, is_parallel=True)
    assert found.value.tool.name == "third"


def test_rules_end_where_a_form_is_too_large() -> None:
    """Of 60 000 bytes that each of many parameters refers to, no more is made than may be."""
    many = {f"a{n}": {"type": "array", "items": {"$ref": "#/$defs/x"}} for n in range(500)}
    schema = {"properties": many, "$defs": {"x": {"enum": ["word"] * 7500}}}
    tracemalloc.start()
    try:
        with pytest.raises(LargeRulesError):
            form_with("elements", schema)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 4 << 20


@pytest.mark.parametrize("group", ["$defs", "definitions"])
def test_values_carry_the_definitions_that_they_refer_to_and_no_others(group: str) -> None:
    ways = {
        "a/b": {"type": "array", "items": {"$ref": f"#/{group}/c%20d"}, "maxItems": 1},
        "c d": {"anyOf": [{"type": "integer"}, {"$ref": f"#/{group}/a~1b"}]},
        "else": {"enum": ["not this one"]},
    }
    schema = {"properties": {"a": {"items": {"$ref": f"#/{group}/a~1b"}}}, group: ways}
    tool = Tool("plan_trip", None, schema)
    form = form_of_calls(SYNTAXES["elements"], [tool], None, is_parallel=True)
    assert "a/b" in form.text and "c d" in form.text and "not this one" not in form.text
    matcher = form_with("elements", schema)
    for value, is_taken in (([[1], [[2]], []], True), ([["x"]], False), ([[1, 2]], False)):
        assert accepts(matcher, "elements", reported("elements", {"a": value})) == is_taken


def test_a_request_learns_what_of_its_tools_cannot_be_kept() -> None:
    request = generation_pb2.GenerateRequest(
        tool_choice=generation_pb2.ToolChoice(mode=generation_pb2.TOOL_MODE_REQUIRED)
    )
    many = {f"a{number}": {"type": "string", "maxLength": number} for number in range(500)}
    for schema, message in (
        (
            {"properties": many},
            "tools make a grammar of more than 65536 bytes; expected at most that",
        ),
        (
            {"required": [5]},
            r"tools\[1\].parameters has 'required' that is \[5\], which is not a list",
        ),
    ):
        tools = (Tool("clock"), Tool("plan_trip", None, schema))
        use = ToolUse(SYNTAXES["elements"], tools, is_parallel=True)
        with pytest.raises(InvalidArgumentError, match=message):
            use.form(request, MODEL)
