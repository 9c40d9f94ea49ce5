"""Which adapters are told to be at hand, to whoever chooses between servers."""

import contextlib
import time
from types import SimpleNamespace
from typing import Any, cast

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from loramux_server.metrics.totals import NOTHING
from loramux_server.statuses import Statuses
from loramux_server.store.record import AdapterRecord
from loramux_server.transport.lora_requests import MAX_NAMES, LoraRequests
from loramux_server.wire.messages import Report


class Reported:
    """What a server of `names`, digest -> names, tells when it is scraped."""

    def __init__(self, names: dict[str, list[str]]) -> None:
        self.statuses = Statuses()
        self.registry = CollectorRegistry()
        self._names = names
        self.registry.register(LoraRequests(self.statuses, self._with_digest, max_adapters=8))

    def _with_digest(self, digest: str) -> list[AdapterRecord]:
        found = [SimpleNamespace(full_name=name) for name in self._names.get(digest, [])]
        return cast("list[AdapterRecord]", found)

    def move(self, **tiers: str) -> None:
        """Let the engine report where digests are now."""
        self.statuses.report(Report(stats=NOTHING, tiers=tiers))

    def sample(self) -> Any:
        """The only sample of the page."""
        page = generate_latest(self.registry).decode()
        (family,) = text_string_to_metric_families(page)
        assert (family.name, family.type) == ("loramux_lora_requests_info", "gauge")
        (sample,) = family.samples
        return sample

    def lists(self) -> tuple[str, str]:
        """The adapters that are at hand, and those that are waited for."""
        labels = self.sample().labels
        return labels["running_lora_adapters"], labels["waiting_lora_adapters"]


@pytest.fixture
def reported() -> Reported:
    return Reported({"a": ["first"], "b": ["acme/second", "third"], "c": ["fourth"]})


def test_an_idle_server_reports_its_capacity_and_when(reported: Reported) -> None:
    before = time.time()
    sample = reported.sample()
    assert before <= sample.value <= time.time()
    assert sample.labels["max_lora"] == "8"
    assert reported.lists() == ("", "")


def test_an_adapter_is_waited_for_until_the_device_has_it(reported: Reported) -> None:
    with reported.statuses.used("a", "acme"), reported.statuses.used("b", "acme"):
        assert reported.lists() == ("", "first,acme/second,third")
        reported.move(a="host")
        assert reported.lists() == ("", "first,acme/second,third")
        reported.move(a="device")
        assert reported.lists() == ("first", "acme/second,third")
    assert reported.lists() == ("first", "")


def test_what_is_asked_for_now_comes_first_and_then_what_was_last(reported: Reported) -> None:
    reported.move(a="device", b="device", c="device")
    for digest in "cab":
        with reported.statuses.used(digest, "acme"):
            pass
    assert reported.lists()[0] == "acme/second,third,first,fourth"
    with reported.statuses.used("c", "acme"):
        assert reported.lists()[0] == "fourth,acme/second,third,first"


def test_what_was_fetched_unasked_comes_after_what_was_asked_for(reported: Reported) -> None:
    reported.move(a="device")
    with reported.statuses.used("a", "acme"):
        pass
    reported.move(b="device")
    assert reported.lists()[0] == "first,acme/second,third"
    with reported.statuses.used("c", "acme"):
        reported.move(c="device")
    reported.move(a="device")  # told once more, it is not asked for
    assert reported.lists()[0] == "fourth,first,acme/second,third"


def test_what_was_let_go_is_at_hand_no_more(reported: Reported) -> None:
    reported.move(a="device", b="device")
    reported.move(a="host")
    assert reported.lists()[0] == "acme/second,third"
    reported.statuses.engine_died()
    assert reported.lists() == ("", "")


def test_a_mix_has_no_name(reported: Reported) -> None:
    with reported.statuses.used("a", "acme", "mix"), reported.statuses.used("b", "acme", "mix"):
        assert reported.lists() == ("", "")
        reported.move(mix="device")
        assert reported.lists() == ("", "")


def test_there_is_one_series_whatever_comes_and_goes_and_its_names_are_bounded() -> None:
    digests = [f"d{number}" for number in range(2 * MAX_NAMES)]
    reported = Reported({digest: [f"adapter-{digest}"] for digest in digests})
    with contextlib.ExitStack() as requests:
        for digest in digests:
            requests.enter_context(reported.statuses.used(digest, "acme"))
            reported.sample()  # which demands that it is the only one
        assert len(reported.lists()[1].split(",")) == MAX_NAMES
        reported.move(**dict.fromkeys(digests, "device"))
        running, waiting = reported.lists()
        assert (len(running.split(",")), waiting) == (MAX_NAMES, "")


def test_nothing_stays_of_requests_that_ended(reported: Reported) -> None:
    for _ in range(3):
        with pytest.raises(ValueError, match="gone"), reported.statuses.used("a", "acme"):
            raise ValueError("gone")
    assert reported.statuses.waited_for() == []
