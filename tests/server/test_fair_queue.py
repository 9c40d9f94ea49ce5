"""Tenants take turns by what they were served, and one alone notices nothing."""

from collections import Counter

import hypothesis.strategies as st
from hypothesis import given, settings

from loramux_server.engine.block_manager import BlockManager
from loramux_server.engine.contexts import Contexts
from loramux_server.engine.ends import Ends
from loramux_server.engine.fair_queue import OUTPUT_COST, FairQueue
from loramux_server.engine.request import Request
from loramux_server.engine.scheduler import Scheduler
from loramux_server.wire.sampling import Sampling
from tests.server.test_scheduler import Adapters

MAX_RUNNING = 3
PRIORITIES = st.sampled_from([0, 0, -3, 8])


def request(
    request_id: int, tenant: str, *, weight: int = 1, num_prompt: int = 4, max_tokens: int = 4,
    priority: int = 0,
) -> Request:  # fmt: skip
    sampling = Sampling(max_tokens=max_tokens, seed=0, ignore_eos=True)
    return Request(
        request_id, [5] * num_prompt, None, sampling, tenant, weight=weight, priority=priority
    )


class Setup:
    """A scheduler that runs, and what it gave each tenant."""

    def __init__(self) -> None:
        self.scheduler = Scheduler(
            contexts=Contexts(BlockManager(500, 4), shares_prefixes=False),
            adapters=Adapters(), ends=Ends(1000, frozenset()), max_running=MAX_RUNNING,
            max_batch_tokens=64, max_bypassed=2,
        )  # fmt: skip
        self.started: list[int] = []
        self.served: Counter[str] = Counter()

    def add(self, *requests: Request) -> None:
        for one in requests:
            self.scheduler.add(one)

    def step(self, count: int = 1) -> None:
        for _ in range(count):
            plan = self.scheduler.plan()
            self.started += [one.request_id for one in plan.started]
            for one in plan.started:
                self.served[one.tenant] += len(one.prompt)
            samples = [[9]] * sum(chunk.samples for chunk in plan.chunks)
            for one, _, _ in self.scheduler.commit(plan, samples):
                self.served[one.tenant] += OUTPUT_COST
            self.scheduler.check()


def test_tenants_take_turns() -> None:
    setup = Setup()
    setup.add(*(request(i, "noisy") for i in range(10)))
    setup.add(request(10, "quiet"), request(11, "quiet"))
    setup.step()
    assert setup.started == [0, 10, 1]
    setup.step(4)
    assert setup.started[3:] == [11, 2, 3]


def test_a_tenant_alone_is_served_in_the_order_of_arrival() -> None:
    setup = Setup()
    setup.add(*(request(i, "only", num_prompt=1 + 7 * i % 5) for i in range(20)))
    setup.step(60)
    assert setup.started == list(range(20))


def test_priority_changes_nothing_between_tenants() -> None:
    started = []
    for times in (0, 1):
        setup = Setup()
        setup.add(*(request(i, "meek") for i in range(20)))
        setup.add(*(request(i, "bold", priority=-times * (i % 7)) for i in range(20, 40)))
        setup.step(30)
        started.append(setup.started)
    turns = [[i < 20 for i in each] for each in started]
    assert turns[0] == turns[1]
    assert started[0] != started[1]


def test_who_was_away_is_not_paid_for_it() -> None:
    setup = Setup()
    setup.add(*(request(i, "noisy") for i in range(100)))
    setup.add(request(100, "late"))
    setup.step(60)
    setup.add(*(request(i, "late") for i in range(101, 200)))
    begin = len(setup.started)
    setup.step(20)
    lately = ["late" if i > 100 else "noisy" for i in setup.started[begin:]]
    assert abs(lately.count("late") - lately.count("noisy")) <= 2 * MAX_RUNNING


def test_to_come_and_go_is_no_way_to_the_front() -> None:
    queue = FairQueue()
    waiting = request(0, "waiting")
    queue.append(waiting)
    for i in range(1, 5):
        greedy = request(i, "greedy")
        queue.append(greedy)
        queue.remove(greedy)
        queue.charge_prompt(greedy)
        queue.ended(greedy)
    again = request(9, "greedy")
    queue.append(again)
    assert list(queue.in_order()) == [waiting, again]


def test_who_goes_on_goes_before_others_of_its_tenant() -> None:
    setup = Setup()
    setup.add(
        *(request(i, "long") for i in range(20)), *(request(i, "other") for i in range(20, 40))
    )
    setup.step()
    going_on = request(99, "long")
    going_on.goes_on = going_on.has_started = True
    setup.add(going_on)
    prompt_tokens = setup.scheduler.num_prompt_tokens
    assert setup.scheduler.waiting.lines()[1][0] is going_on
    setup.step(8)
    assert going_on.output
    # It was queued and counted before.
    assert 99 not in setup.started
    assert setup.scheduler.num_prompt_tokens == prompt_tokens + 4 * (
        len(setup.started) - MAX_RUNNING
    )


def test_who_was_paused_is_not_paid_for_it() -> None:
    setup = Setup()
    slow = request(0, "slow", max_tokens=1000)
    setup.add(slow, *(request(i, "other") for i in range(1, 200)))
    setup.step()
    setup.scheduler.pause(slow)
    setup.step(60)
    setup.scheduler.resume(slow)
    setup.add(*(request(i, "slow") for i in range(200, 300)))
    begin = len(setup.started)
    setup.step(30)
    lately = ["slow" if i >= 200 else "other" for i in setup.started[begin:]]
    # Its long request runs all the time, so that it starts fewer others, and no more.
    assert 0 < lately.count("slow") <= lately.count("other")


def test_what_goes_before_a_request_is_its_own_line_and_the_turns_of_others() -> None:
    queue = FairQueue()
    noisy = [request(i, "noisy", num_prompt=10) for i in range(50)]
    for one in noisy:
        queue.append(one)
    assert list(queue.before(request(98, "quiet"))) == []
    quiet = [request(50 + i, "quiet", num_prompt=15) for i in range(2)]
    for one in quiet:
        queue.append(one)
    # Until quiet was served 30 tokens, noisy is too: three prompts.
    assert list(queue.before(request(98, "quiet"))) == [*quiet, *noisy[:3]]
    assert list(queue.before(request(98, "noisy"))) == [*noisy, *quiet]
    assert list(queue.before(request(98, "noisy", priority=-1))) == []
    heavy = request(99, "heavy", num_prompt=30, weight=10)
    queue.append(heavy)
    assert list(queue.before(request(98, "heavy"))) == [heavy, noisy[0], quiet[0]]
    late = [request(97 - i, "heavy", priority=1, weight=10) for i in range(2)]
    for one in late:
        queue.append(one)
    assert list(queue.before(request(90, "heavy", priority=1)))[:3] == [heavy, *late]
    assert list(queue.before(request(90, "heavy"))) == [heavy, noisy[0], quiet[0]]


@settings(max_examples=60)
@given(
    lines=st.lists(
        st.tuples(
            st.integers(1, 4), st.lists(st.tuples(st.integers(1, 30), PRIORITIES), max_size=8)
        ),
        min_size=1, max_size=4,
    ),
    num_steps=st.integers(0, 6),
    priority=PRIORITIES,
)  # fmt: skip
def test_what_is_thought_to_go_before_does_so(
    lines: list[tuple[int, list[tuple[int, int]]]], num_steps: int, priority: int
) -> None:
    setup = Setup()
    number = 0
    for index, (weight, prompts) in enumerate(lines):
        for num_prompt, theirs in prompts:
            number += 1
            setup.add(
                request(
                    number, str(index), weight=weight, num_prompt=num_prompt, max_tokens=1,
                    priority=theirs,
                )
            )  # fmt: skip
    setup.step(num_steps)
    mine = request(0, "0", weight=lines[0][0], max_tokens=1, priority=priority)
    thought = {one.request_id for one in setup.scheduler.waiting.before(mine)}
    begin = len(setup.started)
    setup.add(mine)
    while 0 not in setup.started:
        setup.step()
    before = setup.started[begin : setup.started.index(0)]
    # Who has the same turn may go first, and what others generate costs them turns.
    assert len(thought.symmetric_difference(before)) <= 2 * len(lines)


def test_nothing_is_kept_of_tenants_that_have_gone() -> None:
    setup = Setup()
    for i in range(50):
        setup.add(request(i, f"tenant-{i}"))
    setup.step(100)
    assert len(setup.started) == 50
    assert not setup.scheduler.waiting._served
    assert not setup.scheduler.waiting._num_live


TENANTS = st.lists(
    st.tuples(st.integers(1, 4), st.integers(1, 12), st.integers(1, 8)), min_size=2, max_size=4
)
"""Weight, tokens of a prompt and of a completion of each tenant."""


@settings(max_examples=60)
@given(tenants=TENANTS, excess=st.integers(1, 10), num_steps=st.integers(10, 80))
def test_who_always_waits_gets_its_part(
    tenants: list[tuple[int, int, int]], excess: int, num_steps: int
) -> None:
    setup = Setup()
    num_added = 0
    for _ in range(num_steps):
        for index, (weight, num_prompt, max_tokens) in enumerate(tenants):
            # The first asks for more than the others; a step leaves some of each that wait.
            wanted = 1 + MAX_RUNNING * (excess if index == 0 else 1)
            waiting = sum(one.tenant == str(index) for one in setup.scheduler.waiting)
            for _ in range(wanted - waiting):
                num_added += 1
                setup.add(
                    request(
                        num_added, str(index), weight=weight, num_prompt=num_prompt,
                        max_tokens=max_tokens,
                    )
                )  # fmt: skip
        setup.step()
    # A tenant starts a request while nobody has less. After that it gets ahead by this prompt and
    # by what its running requests generate, and no further.
    lead = max(
        (num_prompt + OUTPUT_COST * MAX_RUNNING * max_tokens) / weight
        for weight, num_prompt, max_tokens in tenants
    )
    parts = [setup.served[str(i)] / weight for i, (weight, _, _) in enumerate(tenants)]
    assert max(parts) - min(parts) <= lead + 1e-9
