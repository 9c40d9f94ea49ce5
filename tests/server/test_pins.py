"""Pinned adapters: they come and stay, and give way only where a request would wait for ever."""

import pytest

from loramux_server.lora.adapter_cache import AdapterCache, Tier
from loramux_server.lora.row_allocator import RowSize
from loramux_server.wire.ask import Ask
from loramux_server.wire.messages import Pin, Submit, Unpin
from loramux_server.wire.sampling import Sampling
from tests.support.fake import FakeModel, HeldExecutor, fake_engine, fake_source

GREEDY = Sampling(max_tokens=3, seed=0, temperature=0.0, ignore_eos=True)


class Running:
    """A fake engine of 24 rows whose loads are done between the steps."""

    def __init__(self) -> None:
        self.executor = HeldExecutor()
        self.model = FakeModel()
        self.engine, _, self.cache, _ = fake_engine(
            num_blocks=32, rows=24, executor=self.executor, model=self.model
        )
        self.tiers: dict[str, str] = {}
        self.failed: dict[str, str] = {}
        self._next_id = 0

    def step(self, count: int = 12) -> int:
        """Step `count` times and return how many requests finished."""
        finished = 0
        for _ in range(count):
            report = self.engine.step()
            self.tiers |= report.tiers
            self.failed |= report.failed_loads
            finished += sum(token.finish is not None for token in report.tokens)
            while len(self.executor):
                self.executor.finish()
            self.engine.check()
        return finished

    def pin(self, number: int, rank: int = 8) -> None:
        self.engine.receive([Pin(fake_source(number, rank))])
        self.step()

    def request(self, number: int, rank: int = 8) -> int:
        self._next_id += 1
        source = fake_source(number, rank)
        self.engine.receive([Submit(self._next_id, Ask([1, 2, 3], source, GREEDY))])
        return self.step(40)

    def resident(self) -> set[int]:
        return {int(digest.removeprefix("sha256:"), 16) for digest in self.cache.held(Tier.DEVICE)}


@pytest.fixture
def running() -> Running:
    return Running()


def test_a_pinned_adapter_comes_without_a_request_and_stays(running: Running) -> None:
    running.pin(1)
    assert running.resident() == {1}
    for number in (2, 3, 4, 5):
        assert running.request(number) == 1
        assert 1 in running.resident()
    assert running.tiers[fake_source(1, 8).digest] == "device"


def test_an_adapter_that_is_no_longer_pinned_goes_as_others_do(running: Running) -> None:
    running.pin(1)
    running.engine.receive([Unpin(fake_source(1, 8).digest)])
    for number in (2, 3, 4):
        running.request(number)
    assert 1 not in running.resident()
    running.engine.receive([Unpin(fake_source(9, 8).digest)])  # nobody pinned it
    running.step()


def test_a_request_that_finds_no_other_room_takes_that_of_a_pinned_one(running: Running) -> None:
    for number in (1, 2, 3):
        running.pin(number)
    assert running.resident() == {1, 2, 3}
    assert running.request(4, rank=16) == 1
    # What is pinned comes back once the room is free again.
    running.step()
    assert running.resident() == {1, 2, 3}


def test_a_pinned_adapter_does_not_take_the_room_of_a_running_request(running: Running) -> None:
    long = Sampling(max_tokens=60, seed=0, temperature=0.0, ignore_eos=True)
    running.engine.receive([Submit(1, Ask([1, 2, 3], fake_source(7, 24), long))])
    running.step()
    running.pin(1)
    assert running.resident() == {7}
    assert running.step(60) == 1
    assert running.resident() == {1}


def test_a_pinned_adapter_that_cannot_be_loaded_is_given_up(running: Running) -> None:
    running.model.broken.add(5)
    running.pin(5)
    assert running.failed == {fake_source(5, 8).digest: "flipped bits"}
    assert not running.engine.can_step
    assert running.request(1) == 1


def test_a_pin_counts_as_no_hit_and_no_miss(running: Running) -> None:
    running.pin(1)
    for tier in (Tier.HOST, Tier.DEVICE):
        assert (running.cache.stats(tier).hits, running.cache.stats(tier).misses) == (0, 0)


def test_what_can_never_fit_is_not_pinned() -> None:
    cache = AdapterCache(device_rows=8, row_size=RowSize(100), host_bytes=1 << 20)
    cache.pin(fake_source(1, 16))
    assert cache.plan_loads() == []
    cache.check()
