"""What is counted of tenants, and under how many names."""

from prometheus_client import CollectorRegistry

from loramux.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
)
from loramux_server.metrics.tenants import MAX_TENANT_LABELS, TenantMetrics


def value(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    return registry.get_sample_value(f"loramux_tenant_{name}_total", labels)


def test_refusals_are_counted_by_whose_limit_it_was() -> None:
    registry, tenants = CollectorRegistry(), TenantMetrics(["ok"])
    registry.register(tenants)
    tenants.arrived("acme")
    for error, times in (
        (ResourceExhaustedError("", reason="QUOTA_EXCEEDED", quota="tenant:acme"), 2),
        (FailedPreconditionError("", reason="QUOTA_EXCEEDED", quota="tenant:acme"), 1),
        (ResourceExhaustedError("", reason="QUEUE_FULL"), 4),
        (InvalidArgumentError("", reason="INVALID_FIELD"), 8),
        (NotFoundError(""), 16),
        (ValueError(), 32),
    ):
        for _ in range(times):
            tenants.of("acme").ended("x", error)
    assert value(registry, "requests_refused", tenant="acme", cause="quota") == 3
    assert value(registry, "requests_refused", tenant="acme", cause="overload") == 4
    assert value(registry, "requests", tenant="acme", outcome="x") == 63
    assert value(registry, "requests", tenant="acme", outcome="ok") == 0


def test_more_tenants_than_there_are_names_for_are_counted_together() -> None:
    registry, tenants = CollectorRegistry(), TenantMetrics(["ok"])
    registry.register(tenants)
    for number in range(3 * MAX_TENANT_LABELS):
        tenants.arrived(f"t{number}")
        tenants.of(f"t{number}").generated_tokens += 1
    samples = [sample for family in registry.collect() for sample in family.samples]
    found = {sample.labels["tenant"] for sample in samples}
    assert len(found) == MAX_TENANT_LABELS + 1
    assert value(registry, "generated_tokens", tenant="other") == 2 * MAX_TENANT_LABELS
    # One that becomes busier than another takes its name, and begins at 0.
    for _ in range(2):
        tenants.arrived("busy")
    assert tenants.of("busy").generated_tokens == 0
    assert value(registry, "generated_tokens", tenant="busy") == 0
    samples = [sample for family in registry.collect() for sample in family.samples]
    assert len({sample.labels["tenant"] for sample in samples}) == MAX_TENANT_LABELS + 1
