"""Dashboard and rules name what a server exposes, and alerts say what to change."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml

from loramux_server.metrics.series import CAUSES, STORE_FULL, Metrics
from tests.deploy.options import commands, options_of
from tests.deploy.promql import SCRAPED, exposed, named, values
from tests.support.server import RunningServer

MONITORING = Path(__file__).parents[2] / "deploy" / "monitoring"
DASHBOARD = json.loads((MONITORING / "loramux.json").read_text(encoding="utf-8"))
RULES = yaml.safe_load((MONITORING / "loramux.rules.yml").read_text(encoding="utf-8"))
TESTS = yaml.safe_load((MONITORING / "loramux.rules.test.yml").read_text(encoding="utf-8"))
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
ALL_RULES = [rule for group in RULES["groups"] for rule in group["rules"]]
ALERTS = [rule for rule in ALL_RULES if "alert" in rule]
RECORDED = {rule["record"]: rule for rule in ALL_RULES if "record" in rule}
QUERY = re.compile(r"label_values\((?P<selector>.+), (?P<label>\w+)\)")
COLUMNS = 24
OUTCOMES = {"ok", STORE_FULL} | {code.name.lower() for code in grpc.StatusCode}


def labels_of(metric: str) -> set[str]:
    """Return the labels that series of `metric` have."""
    if metric in RECORDED:
        return set(metric.partition(":")[0].split("_"))
    return set(exposed()[metric] | SCRAPED)


def check(expression: str, *, more: frozenset[str] = frozenset()) -> None:
    """Demand that a server exposes all that `expression` names, or a rule records it."""
    found = named(expression)
    known = exposed().keys() | RECORDED.keys() | more
    assert found.metrics <= known, f"{found.metrics - known} in {expression}"
    labels = set().union(*(labels_of(metric) for metric in found.metrics - more))
    assert found.labels <= labels, f"{found.labels - labels} in {expression}"
    for metric, label, value in found.matched:
        assert label in (SCRAPED if metric in more else labels_of(metric)), f"{label} of {metric}"
        if label == "outcome" and metric != "loramux_spans_total":
            assert set(values(value)) <= OUTCOMES


def expressions() -> Iterator[str]:
    """Every expression of the dashboard but those of its variables."""
    for panel in PANELS:
        for target in panel["targets"]:
            yield target["expr"]
    for annotation in DASHBOARD["annotations"]["list"]:
        yield annotation["expr"]


def test_a_real_server_exposes_what_is_looked_up_here(tiny_server: RunningServer) -> None:
    with tiny_server.client() as client:
        client.generate("hi", adapter="small", max_tokens=2, ignore_eos=True)
    page = tiny_server.metrics()
    names = {sample.partition("{")[0] for sample in page if "_created" not in sample}
    # Of what has not happened yet, a page has no sample.
    assert names <= exposed().keys()
    for sample in page:
        name, _, labels = sample.partition("{")
        if name in names:
            assert set(re.findall(r'(\w+)="', labels)) == exposed()[name], sample


@pytest.mark.parametrize("expression", sorted(set(expressions())))
def test_the_dashboard_asks_for_what_there_is(expression: str) -> None:
    check(expression)


def test_the_dashboard_can_be_imported_anywhere() -> None:
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert set(variables) == {"datasource", "instance", "adapter"}
    assert variables.pop("datasource")["type"] == "datasource"
    for name, variable in variables.items():
        asked = QUERY.fullmatch(variable["query"]["query"])
        assert asked
        check(asked["selector"])
        (metric,) = named(asked["selector"]).metrics
        assert asked["label"] == name
        assert name in labels_of(metric)
    sources = [panel["datasource"] for panel in [*PANELS, *variables.values()]]
    sources += [target["datasource"] for panel in PANELS for target in panel["targets"]]
    assert all(each == {"type": "prometheus", "uid": "${datasource}"} for each in sources)
    assert "id" not in DASHBOARD  # Grafana's, of where it was made


def test_each_panel_has_an_id_a_title_a_unit_and_queries() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    titles = [panel["title"] for panel in DASHBOARD["panels"]]
    assert len(set(titles)) == len(titles)
    for panel in PANELS:
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        references = [target["refId"] for target in panel["targets"]]
        assert references, panel["title"]
        assert len(set(references)) == len(references), panel["title"]


def test_no_panel_lies_over_another() -> None:
    def cells(panel: dict[str, Any]) -> set[tuple[int, int]]:
        place = panel["gridPos"]
        assert 0 <= place["x"] < place["x"] + place["w"] <= COLUMNS
        return {
            (place["x"] + column, place["y"] + line)
            for column in range(place["w"])
            for line in range(place["h"])
        }

    for one, other in combinations(DASHBOARD["panels"], 2):
        assert not cells(one) & cells(other), (one["title"], other["title"])


def test_the_dashboard_shows_every_metric() -> None:
    shown = set().union(*(named(expression).metrics for expression in expressions()))
    families = {re.sub(r"_(bucket|count|sum)$", "", name) for name in shown}
    known = {re.sub(r"_(bucket|count|sum)$", "", name) for name in exposed()}
    # Routers read the former; what the latter counts is in the ratio.
    apart = {"loramux_lora_requests_info", "loramux_kv_blocks", "loramux_kv_blocks_used"}
    assert families == known - apart


@pytest.mark.parametrize("rule", ALL_RULES, ids=lambda rule: rule.get("alert") or rule["record"])
def test_rules_ask_for_what_there_is(rule: dict[str, Any]) -> None:
    check(rule["expr"], more=frozenset({"up"}))


@pytest.mark.parametrize("name", RECORDED)
def test_a_recorded_series_has_the_labels_that_its_name_says(name: str) -> None:
    grouped = named(RECORDED[name]["expr"]).labels - {"le"}
    assert labels_of(name) == grouped


@pytest.mark.parametrize("alert", ALERTS, ids=lambda rule: rule["alert"])
def test_an_alert_says_how_bad_it_is_what_is_wrong_and_what_to_change(
    alert: dict[str, Any],
) -> None:
    assert alert["labels"]["severity"] in {"critical", "warning", "info"}
    assert set(alert["annotations"]) == {"summary", "description"}
    assert re.match(r"Loramux[A-Z]", alert["alert"])
    description = alert["annotations"]["description"]
    for option in re.findall(r"--[a-z][a-z-]+", description):
        assert any(option in options_of(*command) for command in commands()), option
    for command in re.findall(r"`loramux ([a-z ]+)", description):
        assert tuple(command.split()) in commands(), command
    labels = set().union(*(labels_of(m) for m in named(alert["expr"]).metrics - {"up"})) | SCRAPED
    for text in alert["annotations"].values():
        assert set(re.findall(r"\$labels\.(\w+)", text)) <= labels


def test_each_alert_is_tried_where_it_fires_and_where_it_must_not() -> None:
    names = [test["name"] for test in TESTS["tests"]]
    wanted = [f"{rule['alert']} {how}" for rule in ALERTS for how in ("fires", "is quiet")]
    assert sorted(names) == sorted([*wanted, "LoramuxDown fires where no server is known"])


def test_what_an_alert_counts_is_there_before_it_happens() -> None:
    page = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in Metrics().registry.collect()
        for sample in family.samples
    }
    looked_for = {
        (metric, value)
        for alert in ALERTS
        for metric, label, pattern in named(alert["expr"]).matched
        if label == "outcome" and metric != "loramux_spans_total"
        for value in values(pattern)
    }
    assert {metric for metric, _ in looked_for} == {
        "loramux_requests_total",
        "loramux_uploads_total",
    }
    for metric, outcome in looked_for:
        if metric == "loramux_uploads_total":
            assert page[metric, ("outcome", outcome)] == 0
            continue
        for adapter in ("base", "none", "other"):
            assert page[metric, ("adapter", adapter), ("outcome", outcome)] == 0
    for cause in CAUSES:
        assert page["loramux_requests_shed_total", ("cause", cause)] == 0


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "rules", "loramux.rules.yml"),
        ("test", "rules", "loramux.rules.test.yml"),
        ("check", "config", "prometheus.yml"),
    ],
    ids=" ".join,
)
def test_promtool_agrees(arguments: tuple[str, ...]) -> None:
    done = subprocess.run(
        ["promtool", *arguments], cwd=MONITORING, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
