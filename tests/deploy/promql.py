"""What PromQL expressions name: metrics, and labels of them."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import promql_parser as promql
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from loramux.gateway.observe.metrics import GatewayMetrics
from loramux_server.metrics.series import Metrics
from loramux_server.metrics.top_labels import BASE
from loramux_server.statuses import Statuses
from loramux_server.transport.lora_requests import LoraRequests

SCRAPED = frozenset({"job", "instance"})
"""Labels that Prometheus adds to all that it scrapes."""
_VARIABLES = {"$__rate_interval": "5m", "$instance": "a", "$adapter": "b"}


@dataclass
class Named:
    """What an expression names."""

    metrics: set[str] = field(default_factory=set)
    matched: list[tuple[str, str, str]] = field(default_factory=list)
    """(metric, label, value) of every matcher."""
    labels: set[str] = field(default_factory=set)
    """Labels by which something is grouped or joined."""


def named(expression: str) -> Named:
    """Parse `expression`, in which variables of Grafana may stand, and return what it names."""
    for variable, value in _VARIABLES.items():
        expression = expression.replace(variable, value)
    assert "$" not in expression, f"a variable that nobody defines: {expression}"
    found = Named()

    def visit(node: promql.Expr) -> None:
        if isinstance(node, promql.VectorSelector):
            assert node.name, f"a selector without a metric: {expression}"
            found.metrics.add(node.name)
            found.matched += [(node.name, m.name, m.value) for m in node.matchers.matchers]
        elif isinstance(node, promql.AggregateExpr) and node.modifier:
            found.labels.update(node.modifier.labels)
        elif isinstance(node, promql.BinaryExpr) and node.modifier and node.modifier.matching:
            found.labels.update(node.modifier.matching.labels)

    promql.walk(promql.parse(expression), visit)
    return found


def exposed() -> dict[str, frozenset[str]]:
    """Return the labels of every sample that a server or gateway can expose, by its name."""
    metrics = Metrics()
    metrics.tokens.of(BASE)
    metrics.tenants.of("acme")
    metrics.registry.register(LoraRequests(Statuses(), lambda digest: [], max_adapters=1))
    return {**dict(_samples(metrics.registry)), **dict(_samples(GatewayMetrics().registry))}


def _samples(registry: CollectorRegistry) -> Iterator[tuple[str, frozenset[str]]]:
    for collector in set(registry._collector_to_names):
        if not isinstance(collector, Counter | Gauge | Histogram):
            for family in collector.collect():
                for sample in family.samples:
                    if not sample.name.endswith("_created"):
                        yield sample.name, frozenset(sample.labels)
            continue
        name, labels = collector._name, frozenset(collector._labelnames)
        if isinstance(collector, Counter):
            yield f"{name}_total", labels
        elif isinstance(collector, Gauge):
            yield name, labels
        else:
            yield f"{name}_bucket", labels | {"le"}
            yield f"{name}_count", labels
            yield f"{name}_sum", labels


def values(pattern: str) -> list[str]:
    """Return what a matcher's `pattern` of plain words may be."""
    assert re.fullmatch(r"[\w|]+", pattern), pattern
    return pattern.split("|")
