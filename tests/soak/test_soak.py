"""A short soak of a real server, and that the checks find what leaks."""

import dataclasses
import random
from pathlib import Path

from tests.soak.bases import variants
from tests.soak.bounds import MAX_SLOPE, MEMORY, SPARE, grown, left, slope
from tests.soak.campaign import campaign
from tests.soak.samples import Sample, take
from tests.soak.worker import Setting
from tests.support.polling import eventually
from tests.support.server import RunningServer

REST = Sample(
    done=0, frontend=100.0, engine=600.0, helpers=20.0, tasks=16, leases=0, requests=0, blocks=0,
    states=0, preemptions=0, descriptors=40, threads=19, processes=3, adapters=12, resident=24,
    series=400, files=28,
)  # fmt: skip


def samples(gain: float, *, name: str = "frontend") -> list[Sample]:
    """Return looks at a server that gains so many MiB with a thousand things done, and noise."""
    draw = random.Random(0)
    return [
        dataclasses.replace(
            REST, done=done,
            **{name: getattr(REST, name) + gain * done / 1000 + draw.uniform(-0.5, 0.5)},
        )
        for done in range(0, 20_000, 100)
    ]  # fmt: skip


def test_a_server_in_use_leaves_nothing_behind_and_what_it_holds_is_seen(
    tiny_server: RunningServer, tiny_adapters: Path, tmp_path: Path
) -> None:
    packages = variants([tiny_adapters / "small", tiny_adapters / "single"], tmp_path)
    setting = Setting(("small", "wide"), packages, max_tokens=20, pause=0.1)
    outcome = campaign(tiny_server, setting, seconds=2, num_workers=3, interval=0.2)
    assert outcome.surprises == []
    assert left(outcome.before, outcome.after) == []
    kinds = ("stream", "score", "search", "infer", "batch", "routed", "cancel", "slow", "upload")
    assert min(outcome.done[kind] for kind in kinds) > 0
    # A client that never ends is a leak as any other.
    store = tiny_server.log.parent / "store"
    with tiny_server.client() as client:
        stream = client.stream("a", adapter="small", max_tokens=200, n=8, ignore_eos=True)
        next(stream)
        found = left(outcome.before, take(tiny_server, store, 0))
        stream.close()  # type: ignore[attr-defined]
    assert {"tasks", "leases", "requests", "blocks"} <= {line.split(":")[0] for line in found}
    assert eventually(lambda: not left(outcome.before, take(tiny_server, store, 0)))


def test_a_slope_is_found_with_how_sure_it_is() -> None:
    exact = slope([0, 1000, 2000, 3000], [5.0, 7.0, 9.0, 11.0])
    assert (round(exact.value, 6), round(exact.upper, 6)) == (2.0, 2.0)
    noisy = slope([0, 1000, 2000, 3000], [5.0, 8.0, 8.0, 11.0])
    assert noisy.value < noisy.upper


def test_memory_that_grows_is_found_in_each_process() -> None:
    assert grown(samples(0.0)) == []
    assert grown(samples(0.8 * MAX_SLOPE)) == []
    for name in MEMORY:
        (finding,) = grown(samples(1.2 * MAX_SLOPE, name=name))
        assert name in finding


def test_each_count_that_does_not_come_back_is_found() -> None:
    assert left(REST, REST) == []
    for name, spare in SPARE.items():
        held = getattr(REST, name)
        assert left(REST, dataclasses.replace(REST, **{name: held + spare})) == []
        (finding,) = left(REST, dataclasses.replace(REST, **{name: held + spare + 1}))
        assert name in finding
