"""What is counted under which name, and what is told where nothing can be read."""

import errno

import psutil
import pytest
from prometheus_client import CollectorRegistry, Gauge

from loramux.errors import LoramuxError, ResourceExhaustedError
from loramux_server.metrics.process_memory import show_memory
from loramux_server.metrics.series import Metrics
from loramux_server.services.adapters.storage import storage_errors
from loramux_server.services.observer import counting_failed_uploads


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (OSError(errno.ENOSPC, "no space"), "store_full"),
        (OSError(errno.EIO, "bad disk"), "unavailable"),
        (
            ResourceExhaustedError("too much", reason="STORAGE_QUOTA_EXCEEDED"),
            "resource_exhausted",
        ),
        (ResourceExhaustedError("too many", reason="TOO_MANY_UPLOADS"), "resource_exhausted"),
    ],
)
def test_a_full_store_is_distinguished_from_a_full_quota(error: Exception, outcome: str) -> None:
    metrics = Metrics()
    with pytest.raises(LoramuxError), counting_failed_uploads(metrics), storage_errors():
        raise error
    counted = {
        sample.labels["outcome"]
        for family in metrics.uploads.collect()
        for sample in family.samples
        if sample.name == "loramux_uploads_total" and sample.value
    }
    assert counted == {outcome}


@pytest.mark.parametrize(
    "error", [psutil.NoSuchProcess(1), psutil.ZombieProcess(1), psutil.AccessDenied(1)]
)
def test_an_engine_that_cannot_be_looked_at_holds_nothing(
    error: psutil.Error, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = CollectorRegistry()
    gauge = Gauge("held", "Bytes.", ("process",), registry=registry)
    show_memory(gauge, lambda: 1)

    def fail(pid: int) -> psutil.Process:
        raise error

    monkeypatch.setattr(psutil, "Process", fail)
    assert registry.get_sample_value("held", {"process": "engine"}) == 0
    assert (registry.get_sample_value("held", {"process": "frontend"}) or 0) > 0
