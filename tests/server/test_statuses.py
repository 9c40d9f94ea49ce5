"""What is known of adapters from the engine's reports."""

import asyncio

from loramux_server.metrics.totals import NOTHING
from loramux_server.statuses import Statuses, Usage
from loramux_server.wire.messages import Load, Report


def report(**fields: object) -> Report:
    return Report(stats=NOTHING, **fields)  # type: ignore[arg-type]


def test_a_load_is_seen_from_its_begin_to_its_end() -> None:
    statuses = Statuses()
    moved: list[str] = []
    statuses.on_move = moved.append
    statuses.report(report(loading=["a"]))
    assert statuses.of("a").is_loading
    statuses.report(report(loads=[Load("host", 0.1, "a")], tiers={"a": "host"}, loading=["a"]))
    statuses.report(report(loads=[Load("device", 0.1, "a")], tiers={"a": "device"}))
    found = statuses.of("a")
    assert (found.tier, found.is_loading, found.loads) == ("device", False, 1)
    assert moved == ["a"] * 3


def test_a_load_that_fails_says_why_until_one_succeeds() -> None:
    statuses = Statuses()
    statuses.report(report(loading=["a"]))
    statuses.report(report(failed_loads={"a": "flipped bits"}))
    assert (statuses.of("a").is_loading, statuses.of("a").load_failure) == (False, "flipped bits")
    statuses.report(report(loads=[Load("host", 0.1, "a")], tiers={"a": "host"}))
    assert statuses.of("a").load_failure == ""


def test_only_requests_that_found_it_on_the_device_are_hits() -> None:
    statuses = Statuses()
    with statuses.used("a", "acme"):
        begin = statuses.usage_of("a", "acme").last_used
    statuses.report(report(tiers={"a": "device"}))
    with statuses.used("a", "acme"):
        pass
    found = statuses.usage_of("a", "acme")
    assert (found.requests, found.hits) == (2, 1)
    assert begin is not None
    assert found.last_used is not None
    assert found.last_used >= begin


def test_a_part_of_a_mix_is_hit_where_the_mix_is() -> None:
    statuses = Statuses()
    statuses.report(report(tiers={"mix": "device"}))
    with statuses.used("a", "acme", "mix"), statuses.used("b", "acme", "another"):
        pass
    found = [statuses.usage_of(each, "acme") for each in "ab"]
    assert [(usage.requests, usage.hits) for usage in found] == [(1, 1), (1, 0)]


def test_a_mix_that_cannot_be_loaded_is_forgotten() -> None:
    statuses = Statuses(is_registered=lambda digest: digest == "a")
    for digest in ("a", "mix"):
        statuses.report(report(loading=[digest]))
        statuses.report(report(failed_loads={digest: "unequal ranks"}))
    assert statuses.of("a").load_failure
    assert not statuses.of("mix").load_failure


def test_a_tenant_does_not_see_what_others_do_with_the_same_content() -> None:
    statuses = Statuses()
    with statuses.used("a", "acme"):
        assert statuses.usage_of("a", "other") == Usage()
    assert statuses.usage_of("a", "acme").requests == 1
    statuses.forget("a", is_leaving=False)
    assert statuses.usage_of("a", "acme") == Usage()


def test_when_the_engine_dies_nothing_is_in_memory_and_counts_go_on() -> None:
    statuses = Statuses()
    statuses.report(report(tiers={"a": "device"}, loading=["b"]))
    with statuses.used("a", "acme"):
        statuses.engine_died()
    assert (statuses.of("a").tier, statuses.usage_of("a", "acme").requests) == ("stored", 1)
    assert not statuses.of("b").is_loading


def test_nothing_is_kept_of_what_is_gone() -> None:
    registered = {"a"}
    statuses = Statuses(registered.__contains__)
    for digest in ("a", "b"):
        statuses.report(report(tiers={digest: "device"}))
        statuses.report(report(tiers={digest: "stored"}))
    assert statuses._known.keys() == {"a"}
    registered.clear()
    statuses.forget("a", is_leaving=False)
    statuses.report(report(tiers={"a": "stored"}))
    statuses.report(report(loading=["c"]))
    statuses.report(report(failed_loads={"c": "flipped bits"}))
    assert statuses._known == {}


async def test_what_is_to_leave_is_waited_for() -> None:
    statuses = Statuses(lambda digest: False)
    await statuses.has_left("a")  # of what nobody spoke
    for ends in (lambda: statuses.report(report(tiers={"a": "stored"})), statuses.engine_died):
        statuses.report(report(tiers={"a": "device"}))
        statuses.forget("a", is_leaving=True)
        assert statuses.of("a").tier == "device"  # as it is until the engine says so
        leaving = asyncio.create_task(statuses.has_left("a"))
        statuses.report(report(tiers={"a": "host", "b": "stored"}))
        await asyncio.sleep(0)
        assert not leaving.done()
        ends()
        await leaving
        assert statuses._known == {}
