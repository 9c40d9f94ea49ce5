"""What runs next; no tensors, no clock."""

from loramux_server.engine.block_manager import BlockManager
from loramux_server.engine.contexts import Contexts
from loramux_server.engine.ends import Ends
from loramux_server.engine.plan import Plan
from loramux_server.engine.prefix import name_blocks
from loramux_server.engine.request import Request
from loramux_server.engine.scheduler import Scheduler
from loramux_server.lora.use import Waiter
from loramux_server.wire.adapter_source import AdapterSource
from loramux_server.wire.messages import Finish
from loramux_server.wire.sampling import Sampling

EOS = 1


class Adapters:
    """Resident are those that a test says are."""

    def __init__(self, *resident: str) -> None:
        self.resident = set(resident)
        self.leases: list[str] = []

    def want(self, source: AdapterSource, waiter: Waiter) -> None:
        pass

    def unwant(self, digest: str, waiter: Waiter) -> None:
        pass

    def acquire(self, digest: str, waiter: Waiter) -> bool:
        if digest in self.resident:
            self.leases.append(digest)
        return digest in self.resident

    def release(self, digest: str) -> None:
        self.leases.remove(digest)


def scheduler(
    adapters: Adapters | None = None, *, num_blocks: int = 100, max_running: int = 4,
    max_batch_tokens: int = 8, max_bypassed: int = 2, context_length: int = 1000,
    shares_prefixes: bool = False,
) -> Scheduler:  # fmt: skip
    return Scheduler(
        contexts=Contexts(BlockManager(num_blocks, 4), shares_prefixes=shares_prefixes),
        adapters=adapters or Adapters(),
        ends=Ends(context_length, frozenset({EOS})),
        max_running=max_running,
        max_batch_tokens=max_batch_tokens,
        max_bypassed=max_bypassed,
    )


def request(
    request_id: int, num_prompt: int = 3, adapter: str | None = None, *, priority: int = 0,
    tenant: str = "", **sampling: int,
) -> Request:  # fmt: skip
    source = AdapterSource(adapter, "", 8, 8) if adapter else None
    options = Sampling(**{"max_tokens": 100, "seed": 0} | sampling)  # type: ignore[arg-type]
    prompt = list(range(2, 2 + num_prompt))
    return Request(request_id, prompt, source, options, tenant, priority=priority)


def shape(plan: Plan) -> list[tuple[int, int]]:
    """Return (request, tokens) of each chunk."""
    return [(chunk.request.request_id, chunk.num_tokens) for chunk in plan.chunks]


def run(
    subject: Scheduler, token: int = 9, max_prompt_tokens: int | None = None
) -> list[tuple[int, int]]:
    plan = subject.plan(max_prompt_tokens)
    subject.commit(plan, [[token]] * sum(chunk.samples for chunk in plan.chunks))
    subject.check()
    return shape(plan)


def test_a_long_prompt_runs_in_chunks() -> None:
    subject = scheduler()
    subject.add(request(0, num_prompt=19))
    assert [run(subject) for _ in range(4)] == [[(0, 8)], [(0, 8)], [(0, 3)], [(0, 1)]]


def test_decode_goes_before_prefill() -> None:
    subject = scheduler()
    subject.add(request(0, num_prompt=2))
    run(subject)
    subject.add(request(1, num_prompt=20))
    assert run(subject) == [(0, 1), (1, 7)]
    assert run(subject) == [(0, 1), (1, 7)]


def test_prompts_keep_to_their_limit_where_others_decode() -> None:
    subject = scheduler(max_batch_tokens=30)
    subject.add(request(0, num_prompt=20))
    assert run(subject, max_prompt_tokens=5) == [(0, 20)]  # nobody decodes
    subject.add(request(1, num_prompt=3))
    subject.add(request(2, num_prompt=10))
    subject.add(request(3, num_prompt=10))
    assert run(subject, max_prompt_tokens=5) == [(0, 1), (1, 3), (2, 2)]
    assert run(subject, max_prompt_tokens=5) == [(0, 1), (1, 1), (2, 5)]
    assert run(subject, max_prompt_tokens=5) == [(0, 1), (1, 1), (2, 3), (3, 2)]
    assert run(subject) == [(0, 1), (1, 1), (2, 1), (3, 8)]


def test_requests_start_in_the_order_of_arrival() -> None:
    subject = scheduler(max_running=2)
    for request_id in range(3):
        subject.add(request(request_id))
    assert run(subject) == [(0, 3), (1, 3)]
    subject.remove(subject.running[0])
    assert run(subject) == [(1, 1), (2, 3)]


def test_when_blocks_run_out_the_last_to_start_starts_over() -> None:
    subject = scheduler(num_blocks=3, max_batch_tokens=100)
    subject.add(request(0, num_prompt=4))
    subject.add(request(1, num_prompt=4))
    run(subject)  # one block each
    assert run(subject) == [(0, 1)]  # both need a second one, and one is left
    assert [waiting.request_id for waiting in subject.waiting] == [1]
    assert subject.num_preemptions == 1
    subject.remove(subject.running[0])
    assert run(subject) == [(1, 5)]  # the prompt, and the token that it had


def test_a_paused_request_holds_nothing_and_goes_on_where_it_was() -> None:
    adapters = Adapters("here")
    subject = scheduler(adapters, num_blocks=3, max_running=1)
    slow = request(0, num_prompt=4, adapter="here")
    subject.add(slow)
    run(subject)
    subject.pause(slow)
    assert (subject.num_used_blocks, adapters.leases) == (0, [])
    subject.add(request(1, num_prompt=4))
    assert run(subject) == [(1, 4)]  # its place is another's
    subject.resume(slow)
    assert run(subject) == [(1, 1)]
    subject.remove(subject.running[0])
    assert run(subject) == [(0, 5)]  # the prompt, and the token that it had
    assert slow.output == [9, 9]
    assert subject.num_preemptions == 0


def test_who_comes_back_hides_nobody_whom_enough_have_passed() -> None:
    subject = scheduler(Adapters(), max_bypassed=1)
    first = request(0, adapter="away")
    for waiting in (first, request(1, adapter="away")):
        subject.add(waiting)
    subject.pause(first)
    subject.add(request(2))
    assert run(subject) == [(2, 3)]  # and so it has passed the one that waits
    subject.resume(first)
    subject.check()
    assert subject.plan().urgent == "away"


def test_a_request_paused_in_the_queue_does_not_start() -> None:
    subject = scheduler(max_running=1)
    subject.add(request(0))
    waiting = request(1)
    subject.add(waiting)
    run(subject)
    for _ in range(2):
        subject.pause(waiting)
    subject.remove(subject.running[0])
    assert run(subject) == []
    for _ in range(2):
        subject.resume(waiting)
    assert run(subject) == [(1, 3)]
    subject.pause(waiting)
    subject.remove(waiting)
    subject.resume(waiting)
    assert not (subject.paused or subject.waiting or subject.running)


def test_a_request_that_never_started_comes_back_before_those_that_came_later() -> None:
    subject = scheduler(Adapters(), max_bypassed=1)
    asked = [request(number, adapter="away") for number in range(4)]
    for each in asked:
        subject.add(each)
    subject.pause(asked[2])
    subject.add(request(4))
    run(subject)  # it passes those who wait for their adapter
    subject.resume(asked[2])
    assert [each.request_id for each in subject.waiting] == [0, 1, 2, 3]
    subject.check()
    assert subject.plan().urgent == "away"


def test_a_request_whose_adapter_is_away_lets_others_pass_a_bounded_number_of_times() -> None:
    adapters = Adapters("here")
    subject = scheduler(adapters, max_bypassed=2)
    subject.add(request(0, adapter="away"))
    for request_id in (1, 2, 3):
        subject.add(request(request_id, num_prompt=1, adapter="here"))
        run(subject)
    # The third finds that enough have passed.
    assert [waiting.request_id for waiting in subject.waiting] == [0, 3]
    assert subject.plan().urgent == "away"
    subject.add(request(4, num_prompt=1))
    assert (4, 1) in run(subject)  # a base request holds no adapter up
    adapters.resident = {"here", "away"}
    subject.remove(subject.running[0])
    assert (0, 3) in run(subject)
    assert subject.plan().urgent is None


def test_requests_of_better_priority_start_first() -> None:
    subject = scheduler(max_running=1)
    for request_id, priority in enumerate([0, 5, -1, 0, 5, -1]):
        subject.add(request(request_id, priority=priority, max_tokens=1))
    assert [run(subject)[0][0] for _ in range(6)] == [2, 5, 0, 3, 1, 4]


def test_when_blocks_run_out_the_worst_priority_starts_over() -> None:
    subject = scheduler(num_blocks=3, max_batch_tokens=100)
    subject.add(request(0, num_prompt=4, priority=9))
    run(subject)
    subject.add(request(1, num_prompt=3))
    assert run(subject) == [(0, 1), (1, 3)]
    for _ in range(5):
        if subject.num_preemptions:
            break
        shown = run(subject)
    assert shown == [(1, 1)]  # the other started first, and lost its place in the same step
    assert [waiting.request_id for waiting in subject.waiting] == [0]
    subject.add(request(2, priority=9, max_tokens=1))
    subject.add(request(3, priority=8, max_tokens=1))
    assert [waiting.request_id for waiting in subject.waiting] == [3, 0, 2]


def test_preemption_takes_nothing_from_a_tenant_for_the_priority_of_another() -> None:
    subject = scheduler(num_blocks=4, max_batch_tokens=100)
    subject.add(request(0, num_prompt=3, tenant="meek", priority=100))
    run(subject)
    subject.add(request(1, num_prompt=3, tenant="bold", priority=5))
    run(subject)
    subject.add(request(2, num_prompt=3, tenant="bold", priority=-100))
    run(subject)
    while not subject.num_preemptions:
        run(subject)
    # That of the tenant whose request started last, although a worse one runs.
    assert [waiting.request_id for waiting in subject.waiting] == [1]
    assert [running.request_id for running in subject.running] == [0, 2]


def test_whoever_loses_its_blocks_has_no_part_in_the_step() -> None:
    # The worst priority is first in the order of starts, and needs no block itself.
    subject = scheduler(num_blocks=3, max_batch_tokens=100)
    subject.add(request(0, num_prompt=5, priority=1))
    run(subject)
    subject.add(request(1, num_prompt=4))
    run(subject)
    assert [len(each.blocks) for each in subject.running] == [2, 1]
    assert run(subject) == [(1, 1)]
    assert [waiting.request_id for waiting in subject.waiting] == [0]


def test_who_comes_back_keeps_its_place_among_equals() -> None:
    subject = scheduler(max_running=1)
    running = request(0, priority=1)
    subject.add(running)
    run(subject)
    asked = [request(number, priority=number % 2) for number in range(1, 5)]
    for each in asked:
        subject.add(each)
    for each in (running, asked[0], asked[3]):
        subject.pause(each)
    assert [each.request_id for each in subject.waiting] == [2, 3]
    for each in (asked[3], asked[0], running):
        subject.resume(each)
    assert [each.request_id for each in subject.waiting] == [2, 4, 0, 1, 3]
    subject.check()


def test_a_better_priority_hides_nobody_whom_enough_have_passed() -> None:
    subject = scheduler(Adapters("here"), max_bypassed=1, max_running=10)
    subject.add(request(0, adapter="away", priority=5))
    subject.add(request(1, adapter="here", priority=5))
    run(subject)
    subject.add(request(2, adapter="far", priority=1))
    assert subject.plan().urgent == "away"
    subject.check()
    # Before it, others still start; behind it, nobody does who has an adapter.
    subject.add(request(3, adapter="here", priority=5))
    subject.add(request(4, adapter="here", priority=0))
    assert [number for number, _ in run(subject)] == [1, 4]


def test_removing_a_request_gives_back_what_it_held() -> None:
    adapters = Adapters("here")
    subject = scheduler(adapters)
    subject.add(request(0, adapter="here"))
    run(subject)
    assert adapters.leases == ["here"]
    assert subject.num_used_blocks == 1
    subject.remove(subject.running[0])
    assert adapters.leases == []
    assert subject.num_used_blocks == 0


def finish_of(subject: Scheduler, *tokens: int) -> list[Finish | None]:
    """Return why the only request ended, after each of `tokens`."""
    found = []
    for token in tokens:
        plan = subject.plan()
        found += [finish for _, _, finish in subject.commit(plan, [[token]])]
    return found


def test_an_end_token_stops_a_request() -> None:
    subject = scheduler()
    subject.add(request(0))
    assert finish_of(subject, 5, EOS) == [None, Finish.STOP]
    assert not subject.running


def test_end_tokens_can_be_ignored_or_come_too_early() -> None:
    subject = scheduler()
    subject.add(request(0, ignore_eos=True, max_tokens=2))
    assert finish_of(subject, EOS, EOS) == [None, Finish.LENGTH]
    subject.add(request(1, min_tokens=1))
    assert finish_of(subject, EOS, EOS) == [None, Finish.STOP]


def test_the_context_ends_a_request() -> None:
    subject = scheduler(context_length=5)
    subject.add(request(0, num_prompt=3))
    assert finish_of(subject, 5, 5) == [None, Finish.LENGTH]


def test_a_plan_never_exceeds_the_budget() -> None:
    subject = scheduler(max_batch_tokens=5, max_running=10)
    for request_id in range(10):
        subject.add(request(request_id, num_prompt=1 + request_id))
    for _ in range(20):
        assert sum(count for _, count in run(subject)) <= 5


def test_one_step_lets_no_more_pass_than_are_allowed_to() -> None:
    subject = scheduler(Adapters("here"), max_bypassed=2)
    subject.add(request(0, adapter="away"))
    for request_id in (1, 2, 3):
        subject.add(request(request_id, num_prompt=1, adapter="here"))
    assert run(subject) == [(1, 1), (2, 1)]


def test_equal_beginnings_are_computed_once() -> None:
    subject = scheduler(shares_prefixes=True, max_batch_tokens=100)
    subject.add(request(0, num_prompt=11))
    assert run(subject) == [(0, 11)]
    subject.add(request(1, num_prompt=11))
    subject.add(request(2, num_prompt=6))
    subject.add(request(3, num_prompt=8))  # two whole blocks, but a token has to be computed
    assert run(subject) == [(0, 1), (1, 3), (2, 2), (3, 4)]
    assert [r.blocks[0] for r in subject.running] == [subject.running[0].blocks[0]] * 4
    assert (subject.num_prompt_tokens, subject.num_shared_tokens) == (36, 8 + 4 + 4)
    subject.check()


def test_another_adapter_has_other_keys_and_values() -> None:
    subject = scheduler(Adapters("x", "y"), shares_prefixes=True, max_batch_tokens=100)
    subject.add(request(0, num_prompt=9, adapter="x"))
    run(subject)
    subject.add(request(1, num_prompt=9, adapter="y"))
    subject.add(request(2, num_prompt=9))
    subject.add(request(3, num_prompt=9, adapter="x"))
    assert run(subject) == [(0, 1), (1, 9), (2, 9), (3, 1)]


def test_another_tenant_shares_nothing() -> None:
    subject = scheduler(Adapters("x"), shares_prefixes=True, max_batch_tokens=100)
    for number, (tenant, adapter) in enumerate(
        [("acme", None), ("other", None), ("acme", "x"), ("other", "x"), ("acm", None), ("", None)]
    ):
        mine = request(number, num_prompt=9, adapter=adapter, max_tokens=1)
        mine.tenant = tenant
        subject.add(mine)
        assert run(subject) == [(number, 9)]
    again = request(9, num_prompt=9, adapter="x", max_tokens=1)
    again.tenant = "other"
    subject.add(again)
    assert run(subject) == [(9, 1)]


def test_where_a_tenant_ends_and_a_digest_begins_is_part_of_a_name() -> None:
    first, second = request(0, num_prompt=5, adapter="bc"), request(1, num_prompt=5, adapter="c")
    first.tenant, second.tenant = "a", "ab"
    assert name_blocks(first, 4, 5) != name_blocks(second, 4, 5)


def test_what_ended_is_remembered_until_its_room_is_needed() -> None:
    subject = scheduler(shares_prefixes=True, num_blocks=4, max_batch_tokens=100)
    subject.add(request(0, num_prompt=9, max_tokens=1))
    assert run(subject) == [(0, 9)]
    assert subject.num_used_blocks == 0
    subject.add(request(1, num_prompt=9, max_tokens=1))
    assert run(subject) == [(1, 1)]
    subject.add(Request(2, list(range(40, 55)), None, Sampling(max_tokens=1, seed=0)))
    assert run(subject) == [(2, 15)]  # takes all blocks
    subject.add(request(3, num_prompt=9, max_tokens=1))
    assert run(subject) == [(3, 9)]
    subject.check()


def test_a_request_that_starts_over_finds_what_it_had() -> None:
    subject = scheduler(num_blocks=3, max_batch_tokens=100, shares_prefixes=True)
    subject.add(request(0, num_prompt=4))
    subject.add(Request(1, [30, 31, 32, 33], None, Sampling(max_tokens=100, seed=0)))
    run(subject)
    assert run(subject) == [(0, 1)]
    assert subject.num_preemptions == 1
    subject.remove(subject.running[0])
    assert run(subject) == [(1, 1)]
    subject.check()


def test_who_waits_for_an_adapter_takes_no_remembered_block_away() -> None:
    subject = scheduler(Adapters(), shares_prefixes=True, num_blocks=4, max_batch_tokens=100)
    subject.add(request(0, num_prompt=15, max_tokens=1))
    assert run(subject) == [(0, 15)]  # all four blocks; three are remembered
    subject.add(request(1, num_prompt=15, adapter="away"))
    assert run(subject) == []
    subject.remove(next(iter(subject.waiting)))
    subject.add(request(2, num_prompt=15, max_tokens=1))
    assert run(subject) == [(2, 3)]
