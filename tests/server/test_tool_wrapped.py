"""Parameters around which something stands where they hold what looks like marks."""

from typing import Any

import pytest

from loramux_server.tools.parameter_reader import ParameterReader
from tests.support.tool_parameters import TRIP, call_in
from tests.support.tool_syntaxes import SYNTAXES, accepts, matcher_of, read, written

WAY = SYNTAXES["wrapped"].parameters


def test_what_stands_around_strings_is_known() -> None:
    assert WAY is not None and WAY.wrapping == ("<![CDATA[", "]]>")


def test_a_template_writes_it_around_some_strings() -> None:
    for city in ("Oslo", "a\nb"):
        calls: list[tuple[str, Any]] = [("plan_trip", {"city": city, "unit": "c"})] * 2
        text = written("wrapped", calls)
        assert ("<![CDATA[" in text) == ("\n" in city)
        assert read("wrapped", text, tools=[TRIP]) == ("", calls)


@pytest.mark.parametrize("city", [
    "", "a\nb", "<b>", "]]>", "a ]]> <b", "</param>", '</param><param name="unit">', "<![CDATA[",
    "<]]></param>\n", "]]></param> x", " <\n ",
])  # fmt: skip
def test_whatever_a_string_holds_it_is_read_as_it_was_given(city: str) -> None:
    text = call_in("wrapped", ("city", f"<![CDATA[{city}]]>"), ("unit", "c")) * 2
    for cut in (list, lambda text: [text]):
        calls = [("plan_trip", {"city": city, "unit": "c"})] * 2
        assert read("wrapped", text, cut, tools=[TRIP]) == ("", calls)


def test_what_stands_around_a_text_makes_it_a_string() -> None:
    text = call_in("wrapped", ("note", "<![CDATA[null]]>"), ("x", "<![CDATA[3]]>"), ("y", "3"))
    wanted = {"note": "null", "x": "3", "y": 3}
    assert read("wrapped", text, tools=[TRIP]) == ("", [("plan_trip", wanted)])


@pytest.mark.parametrize("city", ["Oslo", "<![CDATA[Oslo]]>", "<![CDATA[a <b>]]>", "a <b>"])
def test_strings_may_be_demanded_either_way(city: str) -> None:
    matcher = matcher_of("wrapped", tools=[TRIP])
    assert accepts(matcher, "wrapped", call_in("wrapped", ("city", city), ("unit", "c")))
    for bad in ("x" * 21, f"<![CDATA[{'x' * 21}]]>", "<![CDATA[x", "y<![CDATA[x]]>"):
        assert not accepts(matcher, "wrapped", call_in("wrapped", ("city", bad), ("unit", "c")))


@pytest.mark.parametrize("piece", ["x", "</param>", "]]>", "]]></param>", "<![CDATA["])
def test_each_character_of_a_value_is_looked_at_a_few_times(piece: str) -> None:
    assert WAY is not None
    text = '<param name="city"><![CDATA['
    reader = ParameterReader(WAY, ["</function>"], 0)
    for char in piece * (3000 // len(piece)):
        text += char
        assert reader.find(text) is None
        assert len(text) - reader._seen < 600
