"""The adapters in memory, as the frontend hears of them."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from loramux_server.engine.engine import Engine
from loramux_server.engine.residents import loader_threads
from loramux_server.lora.mix import mixed
from loramux_server.wire.adapter_source import AdapterSource, Combination
from loramux_server.wire.ask import Ask
from loramux_server.wire.messages import Cancel, Drop, Report, Submit
from loramux_server.wire.sampling import Sampling
from tests.support.engine import InlineExecutor
from tests.support.fake import HeldExecutor, ManualClock, SlowModel, fake_engine, fake_source

A, B = (fake_source(number, 8) for number in (1, 2))


def engine() -> Engine:
    """An engine with room for one adapter on the device."""
    return fake_engine(num_blocks=8, rows=8, executor=InlineExecutor())[0]


def serve(subject: Engine, request_id: int, number: int) -> list[Report]:
    """Have a request for adapter `number` come, run and end, and return what was reported."""
    sampling = Sampling(max_tokens=1, seed=0, ignore_eos=True)
    subject.receive([Submit(request_id, Ask([5], fake_source(number, 8), sampling))])
    reports = [subject.step()]
    while not reports[-1].tokens:
        reports.append(subject.step())
        subject.check()
    return reports


def tiers(reports: list[Report]) -> list[dict[str, str]]:
    return [report.tiers for report in reports if report.tiers]


def test_moves_are_reported_once() -> None:
    subject = engine()
    assert tiers(serve(subject, 0, 1)) == [{A.digest: "host"}, {A.digest: "device"}]
    assert tiers(serve(subject, 1, 2)) == [
        {B.digest: "host", A.digest: "host"},
        {B.digest: "device"},
    ]
    assert tiers([subject.step()]) == []


def test_what_comes_back_at_once_is_reported() -> None:
    clock = ManualClock()
    subject = fake_engine(num_blocks=8, rows=8, executor=InlineExecutor(), clock=clock)[0]
    for request_id, number in enumerate((1, 2, 1)):
        last = serve(subject, request_id, number)[-1].stats
    assert (last.device.reloads, last.host.reloads) == (1, 0)
    clock.now += 61
    assert serve(subject, 3, 2)[-1].stats.device.reloads == 1


def test_what_is_dropped_is_stored_only() -> None:
    subject = engine()
    serve(subject, 0, 1)
    subject.receive([Drop(A.digest)])
    report = subject.step()
    subject.check()
    assert report.tiers == {A.digest: "stored"}
    assert (report.stats.device.resident, report.stats.host.used_bytes) == (0, 0)


def mix_of_both() -> AdapterSource:
    mix = mixed([A, B], [0.5, 0.5], Combination.CAT)
    assert mix is not None
    return msgspec.structs.replace(mix, path="3", rank=8)  # the fake loader goes by the path


def test_mixes_go_with_any_of_their_parts() -> None:
    subject, mix = engine(), mix_of_both()
    subject.receive([Submit(0, Ask([5], mix, Sampling(max_tokens=1, seed=0, ignore_eos=True)))])
    while not subject.step().tokens:
        subject.check()
    subject.receive([Drop(fake_source(7, 8).digest)])
    assert subject.step().stats.device.resident == 1
    subject.receive([Drop(B.digest)])
    report = subject.step()
    subject.check()
    assert report.tiers == dict.fromkeys((B.digest, mix.digest), "stored")
    assert (report.stats.device.resident, report.stats.host.used_bytes) == (0, 0)


def test_a_mix_that_loads_goes_with_a_part_when_it_has_come() -> None:
    executor, mix = HeldExecutor(), mix_of_both()
    subject = fake_engine(num_blocks=8, rows=8, executor=executor)[0]
    subject.receive([Submit(0, Ask([5], mix, Sampling(max_tokens=1, seed=0)))])
    subject.step()
    subject.receive([Cancel(0), Drop(A.digest)])
    assert subject.step().tiers == {A.digest: "stored"}
    executor.finish()
    report = subject.step()
    subject.check()
    assert report.tiers == {mix.digest: "stored"}
    assert report.stats.host.used_bytes == 0


def test_what_is_dropped_while_it_is_used_goes_afterwards() -> None:
    subject = engine()
    sampling = Sampling(max_tokens=3, seed=0, ignore_eos=True)
    subject.receive([Submit(0, Ask([5], A, sampling)), Drop(A.digest)])
    reports = [subject.step()]
    while not (reports[-1].tokens and reports[-1].tokens[-1].finish):
        reports.append(subject.step())
        subject.check()
    assert tiers(reports) == [{A.digest: "host"}, {A.digest: "device"}, {A.digest: "stored"}]
    assert reports[-1].tiers  # with the step that ended it
    assert reports[-1].stats.device.resident == 0


def test_what_is_dropped_while_it_loads_for_nobody_goes_when_it_has_come() -> None:
    executor = HeldExecutor()
    subject = fake_engine(num_blocks=8, rows=8, executor=executor)[0]
    subject.receive([Submit(0, Ask([5], A, Sampling(max_tokens=1, seed=0)))])
    subject.step()
    subject.receive([Cancel(0), Drop(A.digest)])
    assert subject.step().tiers == {}
    executor.finish()
    report = subject.step()
    subject.check()
    assert report.tiers == {A.digest: "stored"}
    assert report.stats.host.used_bytes == 0


@pytest.mark.skipif(sys.platform != "linux", reason="threads have no policy of their own")
def test_loads_give_way_to_steps() -> None:
    def policy() -> int:
        return os.sched_getscheduler(threading.get_native_id())

    with loader_threads() as threads:
        assert threads.submit(policy).result() == os.SCHED_IDLE != policy()
    # Who holds a lock of a driver must not be kept from the cores.
    with loader_threads(device=torch.device("cuda")) as threads:
        assert threads.submit(policy).result() == policy()

        def niceness() -> int:
            return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

        assert threads.submit(niceness).result() > niceness()


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts threads as Linux does")
def test_loads_give_openmp_no_reason_to_sleep() -> None:
    """More threads in teams than cores, and every loop of a step begins by waking its own."""
    program = (
        "import os, torch; from loramux_server.engine.residents import loader_threads;"
        "torch.set_num_threads(4); big = torch.ones(1 << 22); big.clone();"
        "threads = loader_threads(); threads.submit(int).result();"
        "before = len(os.listdir('/proc/self/task')); threads.submit(big.clone).result();"
        "print(len(os.listdir('/proc/self/task')) - before)"
    )
    run = [sys.executable, "-c", program]
    assert subprocess.run(run, capture_output=True, text=True, check=True).stdout == "0\n"


def test_loads_have_the_cores_after_a_step_that_took_them() -> None:
    """A load beside endless steps is done after a few of them, however little it gets meanwhile."""

    class Later(ThreadPoolExecutor):
        """Begins a while after it is told to, as where steps leave nothing of the cores."""

        def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
            def work() -> Any:
                time.sleep(0.05)
                return fn(*args, **kwargs)

            return super().submit(work)

    clock = ManualClock()
    model = SlowModel(clock, step_seconds=0.2, token_seconds=0.0)
    with Later(1) as executor:
        subject = fake_engine(num_blocks=99, rows=8, executor=executor, clock=clock, model=model)[0]
        sampling = Sampling(max_tokens=200, seed=0, ignore_eos=True)
        subject.receive([Submit(0, Ask([5], None, sampling)), Submit(1, Ask([5], A, sampling))])
        reports = [subject.step() for _ in range(6)]
    assert {token.request_id for token in reports[-1].tokens} == {0, 1}
