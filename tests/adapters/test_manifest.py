"""The manifest as text and as values, and JSON from strangers."""

import io
import json
import struct
from pathlib import Path
from typing import Any, cast

import pytest

from loramux_adapters import PackageError
from loramux_adapters.contents import Contents
from loramux_adapters.manifest import (
    MAX_TEMPLATE_BYTES,
    check_notes,
    manifest_text,
    parse_manifest,
    with_step,
)
from loramux_adapters.package import Package, read_package
from loramux_adapters.strict_json import MAX_DEPTH, depth, parse_object
from loramux_adapters.tensorfile import TensorFile, read_header
from tests.adapters.files import CONFIG, write_folder
from tests.support.packages import packed

WRONG: dict[str, list[Any]] = {
    "base": ["llama", []], "labels": ["good", {}], "chat_template": [1, []], "generation": [[]],
    "added_tokens": [{}], "licence": [1], "provenance": [[]], "evaluation": [[]], "tensors": [[]],
    "signature": [""],
}  # fmt: skip
"""Name of each note -> values that it cannot have."""


def test_a_manifest_is_read_as_it_was_written() -> None:
    config = {"peft_type": "LORA", "r": 4, "rank_pattern": {"b": 1, "a": 2}, "modules": ["x", "w"]}
    notes = {"provenance": {"b": 1, "a": [{"d": 1, "c": 2}]}, "labels": ["yes", "no"]}
    text = manifest_text(config, notes)
    assert parse_manifest(text).peft_config == config
    assert parse_manifest(text).notes == notes
    assert " " not in text
    assert json.loads(text)["kind"] == "lora"
    assert json.loads(text)["format"] == 1


def test_the_order_of_keys_does_not_matter_but_for_patterns() -> None:
    one, other = {"peft_type": "LORA", "r": {"a": 1, "b": 2}}, {"r": {"b": 2, "a": 1}}
    assert manifest_text(one, {}) == manifest_text(other | {"peft_type": "LORA"}, {})
    for name in ("rank_pattern", "alpha_pattern"):
        ways = [{"peft_type": "LORA", name: dict.fromkeys(keys, 1)} for keys in ("ab", "ba")]
        assert len({manifest_text(way, {}) for way in ways}) == 2


def test_a_step_ends_what_is_known_of_where_an_adapter_comes_from() -> None:
    notes = {"licence": "MIT", "tensors": {"a": "1"}, "signature": {"key": "2"},
             "provenance": {"made_by": "hand", "steps": [{"rank": 3}]}}  # fmt: skip
    assert with_step(notes, {"rank": 2}) == {
        "licence": "MIT",
        "provenance": {"made_by": "hand", "steps": [{"rank": 3}, {"rank": 2}]},
    }
    first = {"provenance": {"steps": [{"rank": 2}]}}
    assert with_step({}, {"rank": 2}) == first
    assert with_step({"provenance": {"steps": "many"}}, {"rank": 2}) == first
    assert with_step({"provenance": "hand"}, {"rank": 2}) == first


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in WRONG.items() for value in values]
)
def test_a_note_of_another_type_is_refused(name: str, value: object) -> None:
    with pytest.raises(PackageError, match=f"^here: {name} is .*; expected a") as caught:
        check_notes({name: value}, "here")
    assert caught.value.reason == "INVALID_ADAPTER_CONFIG"


@pytest.mark.parametrize(("notes", "says"), [
    ({"author": "me"}, "'author' is not a known key; expected one of base, labels"),
    ({"chat_template": ""}, "chat_template has 0 bytes; expected 1 to 65536"),
    ({"chat_template": "ä" * (MAX_TEMPLATE_BYTES // 2) + "x"}, "has 65537 bytes"),
    ({"generation": {"temperature": -1}}, "here: generation"),
    ({"added_tokens": ["x"]}, "here: added_tokens"),
])  # fmt: skip
def test_a_note_out_of_its_bounds_is_refused(notes: dict[str, object], says: str) -> None:
    with pytest.raises(PackageError, match=says) as caught:
        check_notes(notes, "here")
    assert caught.value.reason == "INVALID_ADAPTER_CONFIG"


def test_notes_at_their_bounds_are_kept() -> None:
    for template in ("x", "ä" * (MAX_TEMPLATE_BYTES // 2)):
        assert check_notes({"chat_template": template}, "here") == {"chat_template": template}


def test_a_package_says_what_trained_it_and_what_it_changes(tmp_path: Path) -> None:
    content = packed(write_folder(tmp_path / "poet"))
    package = read_package(io.BytesIO(content), len(content))
    assert package.method == "lora"
    assert package.rank == CONFIG["r"]
    assert package.target_modules == sorted(CONFIG["target_modules"])


def test_a_package_without_low_rank_changes_has_no_rank() -> None:
    file = TensorFile({}, {}, 0)
    package = Package(cast(Any, None), {"peft_type": "IA3"}, {}, Contents(), file)
    assert (package.method, package.rank, package.target_modules) == ("ia3", 0, [])


def test_a_header_that_ends_early_is_noticed() -> None:
    content = struct.pack("<Q", 100) + b"{" + b" " * 50
    with pytest.raises(PackageError, match="the file ends inside the header, after 59 bytes"):
        read_header(io.BytesIO(content), 1000)


@pytest.mark.parametrize(("text", "says"), [
    ("\ufeff{}", "is not valid JSON"), ("[1]", "is not a JSON object"),
    ("7", "is not a JSON object"), ("[1e999]", "is not a JSON object"),
    ('{"a": -0}', "-0 is not an integer"), ('{"a": Infinity}', "Infinity is not JSON"),
    ('{"a": 1e999}', "'a' is 1e999, which is out of range"),
    ('{"b": {"a": [[], [-1' + "0" * 309 + "]]}}", r"'b\.a' is -1000.*, which is out of range"),
    ('{"a": ' + "1" * 9999 + "}", "'a' is 1111.*, which is out of range"),
    ('{"a": 1, "a": 2}', "key 'a' appears twice"),
    ('{"a": "\\ud800"}', "half of a surrogate pair"), ("{" * 99_999, "the thing"),
    ('{"a":' + "[" * MAX_DEPTH + "]" * MAX_DEPTH + "}", "nested too deeply"),
    ('{"a":' + "[" * 99_999 + "]" * 99_999 + "}", "nested too deeply"),
])  # fmt: skip
def test_json_that_parsers_disagree_on_is_refused(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        parse_object(text.encode("utf-8"), "the thing")
    assert str(caught.value).startswith("the thing ")


def test_bytes_that_are_no_text_are_refused() -> None:
    with pytest.raises(ValueError, match="the thing is not UTF-8"):
        parse_object(b'{"a": "\xff"}', "the thing")


def test_json_is_taken_as_deep_as_it_may_be() -> None:
    text = '{"a":' + "[" * (MAX_DEPTH - 1) + "]" * (MAX_DEPTH - 1) + ', "b": 0, "c": -1.5}'
    value = parse_object(text.encode(), "the thing")
    assert depth(value) == MAX_DEPTH == 16
    assert (value["b"], value["c"]) == (0, -1.5)


@pytest.mark.parametrize(("value", "levels"), [
    (1, 0), ({}, 1), ([], 1), ([1, [2], {"a": []}], 3), ({"a": {"b": 1}, "c": 2}, 2),
])  # fmt: skip
def test_depth_is_that_of_the_deepest(value: object, levels: int) -> None:
    assert depth(value) == levels
