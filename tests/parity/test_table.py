"""The table of parity: what is in it, and that a part of the page can be made anew alone."""

from pathlib import Path

import pytest

from tests.parity.table.column import Cell, Refusal
from tests.parity.table.page import PARTS, page

LACKING = {"multitask", "prefix", "prefix, projected", "cartridge", "head: QUESTION_ANS, multitask"}
"""What PEFT does not do with DistilBERT: it gives it no keys and values, and tells not all of its
own classes of tasks."""


@pytest.mark.parametrize(
    ("part", "architecture", "lacking"),
    [("encoders", "distilbert", LACKING), ("library", "t5", set())],
)
def test_each_cell_is_near_peft_or_empty(
    part: str, architecture: str, lacking: set[str], tmp_path: Path
) -> None:
    found = PARTS[part].measure(architecture, tmp_path)
    cells = [cell for cell in found.values() if isinstance(cell, Cell)]
    assert max(cell.alone for cell in cells) < 1e-4
    assert all(cell.is_same is not False for cell in cells)
    assert {name for name, cell in found.items() if not isinstance(cell, Cell)} == lacking


def test_a_part_is_made_anew_beside_the_others() -> None:
    near, far = Cell(1e-6, True), Cell(2e-3, False)
    first = page({
        "decoders": {"a": {"lora": Cell(1e-6, True, 2e-6), "p": Cell(1e-6, True)}},
        "writers": {"b": {"lora": near}, "c": {"tokens": Refusal("no"), "prompt": None}},
    })  # fmt: skip
    assert "| lora | 1e-06 / 2e-06 |\n| p | 1e-06 / - |" in first
    assert "| lora | 1e-06 |  |\n| tokens |  | refused (1) |\n| prompt |  |  |" in first
    assert first.endswith("\n1. no\n")
    second = page({"writers": {"b": {"lora": far}}}, first)
    begin, _, end = first.partition(f"\n## {PARTS['writers'].title}\n")
    assert second.startswith(begin)
    assert "1. no" in end and "1. no" not in second
    assert "| lora | 2e-03 (others chosen) |" in second
    assert "greedy tokens equal in 0 of 1." in second.replace("\n", " ")
