"""The benchmarks run and write what they say; what they measure is not looked at."""

import csv
import json
import sys
from pathlib import Path

import pytest

from benchmarks import experts, forms, gateway, hybrid, images, ratios, registry, routing, scaling


def test_scaling_writes_a_row_for_each_point(tmp_path: Path) -> None:
    table, plot, output = tmp_path / "t.csv", tmp_path / "p.png", tmp_path / "o.json"
    scaling.main(
        adapters=[3], concurrency=[1, 2], rank=[16], context=[8], tokens=2, per_slot=1, repeats=1,
        shape="tiny", table=table, plot=plot, output=output,
    )  # fmt: skip
    expected = [
        ("adapters", "uniform", "3"),
        ("adapters", "zipf", "3"),
        ("concurrency", "distinct", "1"),
        ("concurrency", "distinct", "2"),
        ("rank", "distinct", "16"),
        ("context", "distinct", "8"),
    ]
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["axis"], row["series"], row["value"]) for row in rows] == expected
    assert all(float(row["ratio"]) > 0 for row in rows)
    assert plot.read_bytes().startswith(b"\x89PNG")
    record = json.loads(output.read_text())
    assert record["shape"] == "tiny"
    assert record["machine"]["cores"]
    assert [len(row["rounds"]) for row in record["rows"]] == [1] * len(expected)


def test_ratios_write_a_figure_for_each_round(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "o.json"
    names = ["unused", "cold", "memory"]
    ratios.main(only=names, shape="tiny", repeats=1, tokens=2, per_slot=1, loads=2, output=output)
    record = json.loads(output.read_text())
    assert list(record["measures"]) == names
    assert [len(found["rounds"]) for found in record["measures"].values()] == [1, 1, 1]
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["measure", *names]


def test_a_registry_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "o.json"
    registry.main(count=200, samples=20, output=output)
    measures = json.loads(output.read_text())["measures"]
    assert len(capsys.readouterr().out.splitlines()) == 1 + len(measures)
    assert all(figure["measured"] > 0 for figure in measures.values())


def test_forms_are_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "o.json"
    forms.main(vocab=[400, 500], texts=3, output=output)
    figures = json.loads(output.read_text())["figures"]
    assert [figure["vocab"] for figure in figures] == [400, 500]
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert all(figure["p99_us"] >= figure["p50_us"] > 0 for figure in figures)


def test_what_is_missing_for_a_picture_is_said_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(SystemExit, match="matplotlib"):
        scaling.main(shape="tiny", plot=tmp_path / "p.png")


def test_the_gateway_is_held_against_the_server_behind_it(tmp_path: Path) -> None:
    output = tmp_path / "o.json"
    gateway.main(streams=2, tokens=2, requests=2, shape="tiny", repeats=1, output=output)
    record = json.loads(output.read_text())
    assert len(record["rounds"]) == 1
    assert record["median"]["through_ms"] > 0


def test_both_ways_to_spread_requests_get_the_same_ones(tmp_path: Path) -> None:
    output = tmp_path / "o.json"
    routing.main(
        num_servers=1, adapters=4, room=2, requests=6, concurrency=2, tokens=2, shape="tiny",
        popularity="uniform", repeats=1, output=output,
    )  # fmt: skip
    record = json.loads(output.read_text())
    assert list(record["median"]) == ["round_robin", "adapter"]
    assert all(found["most_requests"] == 6 for found in record["median"].values())


def test_adapters_of_experts_are_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "o.json"
    experts.main(batch=[1, 2], steps=2, repeats=1, context=8, shape="tiny", output=output)
    figures = json.loads(output.read_text())["figures"]
    assert [figure["batch"] for figure in figures] == [1, 2]
    assert all(figure["experts ÷ base"] > 0 for figure in figures)
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_hybrid_bases_are_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "o.json"
    hybrid.main(batch=[1, 2], steps=2, repeats=1, context=8, shape="tiny", output=output)
    figures = json.loads(output.read_text())["figures"]
    assert [figure["batch"] for figure in figures] == [1, 2]
    assert all(figure["PEFT, float32 ÷ base"] > 0 for figure in figures)
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_questions_about_an_image_are_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "o.json"
    images.main(batch=[2], tokens=3, repeats=1, shape="tiny", output=output)
    (figure,) = json.loads(output.read_text())["figures"]
    assert all(figure[f"{way} ÷ base"] > 0 for way in ("adapters", "PEFT, float32"))
    assert len(capsys.readouterr().out.splitlines()) == 1
