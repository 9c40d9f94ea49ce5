"""The page of promises: every one has a row, and what proves it is there."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "promises.md"
NUM_PROMISES = 21


def rows() -> list[list[str]]:
    lines = PAGE.read_text().splitlines()
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in lines
        if re.match(r"\| P\d", line)
    ]


def test_every_promise_has_a_row_with_a_proof() -> None:
    found = rows()
    assert [row[0] for row in found] == [f"P{number + 1}" for number in range(NUM_PROMISES)]
    for row in found:
        number, promise, proof, measured = row
        assert promise.endswith("."), number
        assert "tests/" in proof, number
        assert re.match(r"\d+ cases", measured) or "benchmarks/results/" in measured, number


def test_what_the_page_names_is_there() -> None:
    text = PAGE.read_text()
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert len(links) > NUM_PROMISES
    for link in links:
        assert (PAGE.parent / link).exists(), link
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`make ([a-z-]+)`", text):
        assert f"\n{target}:" in makefile, target
    for module in re.findall(r"`python -m ([a-z_.]+)`", text):
        assert (ROOT / (module.replace(".", "/") + ".py")).exists(), module
