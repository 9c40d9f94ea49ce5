"""Every method and field of the pinned PEFT has one place, and the document says which."""

import dataclasses
from pathlib import Path

import peft
import pytest

from loramux_adapters.bottleneck import PEFT_TYPE as BOTTLENECK
from loramux_adapters.field_table import all_fields, field_table
from loramux_adapters.kinds import FOLDED, KINDS, REFUSED

CONFIGS = {
    str(kind.value): config for kind, config in peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING.items()
}


def test_every_method_of_peft_has_one_place() -> None:
    places = [*KINDS, *FOLDED, *REFUSED]
    assert sorted(places) == sorted([*CONFIGS, BOTTLENECK])


@pytest.mark.parametrize("method", all_fields())
def test_every_field_of_peft_has_one_place(method: str) -> None:
    fields = all_fields()[method]
    places = [*fields.honoured, *fields.recorded, *fields.refused]
    if method != BOTTLENECK:  # which another library trains
        assert {field.name for field in dataclasses.fields(CONFIGS[method])} <= set(places)
    assert len(places) == len(set(places))


def test_a_method_that_is_made_a_lora_has_fields_too() -> None:
    assert all_fields().keys() == {*KINDS, *FOLDED}


def test_the_readme_counts_the_methods() -> None:
    served = len({*KINDS, *FOLDED} - {BOTTLENECK})
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    assert f"**{served} of PEFT's {len(CONFIGS)} methods**" in readme
    assert f"[The other {len(REFUSED)}]" in readme


def test_the_document_is_what_the_code_says() -> None:
    document = Path(__file__).parents[2] / "docs" / "peft-fields.md"
    assert document.read_text(encoding="utf-8") == field_table()
