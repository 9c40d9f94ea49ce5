"""Slots for what recurrent layers know of requests, and who has which; no tensors."""

import pytest

from loramux_server.engine.named_pool import NamedPool
from loramux_server.engine.plan import Chunk, Plan
from loramux_server.engine.prefix import name_blocks
from loramux_server.engine.request import Request
from loramux_server.engine.state_keeper import StateKeeper, StateUse
from loramux_server.kernels.states import BEGINNING
from loramux_server.wire.sampling import Sampling

SIZE = 4


def request(prompt: range | list[int], *, num_output: int = 0) -> Request:
    output = list(range(500, 500 + num_output))
    return Request(1, list(prompt), None, Sampling(max_tokens=100, seed=0), output=output)


def keeper(num_slots: int, *, keeps: bool = True) -> tuple[StateKeeper, NamedPool]:
    made = StateKeeper(num_slots, SIZE, keeps=keeps)
    return made, made._slots


def run(
    subject: StateKeeper, asked: Request, *borders: int, num_blocks: int = 0, ends: bool = True
) -> list[StateUse]:
    """Compute `asked` up to each of `borders` in turn, as if so many of its blocks were there."""
    names = name_blocks(asked, SIZE, len(asked.prompt) - 1)
    num_known = subject.num_known(names[:num_blocks])
    assert subject.can_begin
    subject.begin(asked, names[num_known - 1] if num_known else None, num_blocks)
    uses, start = [], num_known * SIZE
    for end in borders:
        uses.append(subject.use(asked, start, end, is_ahead=False))
        subject.check([asked])
        subject.commit(asked, uses[-1], is_running=True)
        start = end
    if ends:
        subject.end(asked)
        subject.check([])
    return uses


def test_there_is_a_slot_at_least() -> None:
    with pytest.raises(ValueError, match="num_slots must be positive, got 0"):
        StateKeeper(0, SIZE, keeps=True)


def test_a_request_reads_nothing_at_first_and_its_own_slot_then() -> None:
    subject, _ = keeper(4, keeps=False)
    asked = request(range(10))
    first, second, third = run(subject, asked, 3, 9, 10)
    assert first == StateUse(BEGINNING, first.write)
    assert second == third == StateUse(first.write, first.write)


def test_where_a_prompt_ends_its_state_is_kept_and_the_next_goes_on_there() -> None:
    subject, _ = keeper(6)
    (use,) = run(subject, request(range(10)), 10)
    ((position, slot),) = use.kept
    assert position == 8
    (again,) = run(subject, request(range(10)), 10, num_blocks=2)
    assert again.read == slot
    assert again.write != slot
    assert again.kept == ()  # it begins where that is
    longer, *_ = run(subject, request(range(19)), 19, num_blocks=2)
    assert longer.read == slot
    assert [position for position, _ in longer.kept] == [16]


def test_without_its_blocks_a_state_is_nothing() -> None:
    subject, _ = keeper(6)
    run(subject, request(range(10)), 10)
    for num_blocks in (0, 1):
        (use,) = run(subject, request(range(10)), 10, num_blocks=num_blocks)
        assert use.read == BEGINNING


def test_where_prompts_part_a_state_is_kept_for_the_third() -> None:
    subject, _ = keeper(8)
    prompts = [[*range(9), *range(100 * n, 100 * n + 9)] for n in (1, 2, 3)]
    run(subject, request(prompts[0]), 18)
    # Of the second the beginning is there, and no state: it computes it again, and keeps one.
    (second,) = run(subject, request(prompts[1]), 18, num_blocks=2)
    assert second.read == BEGINNING
    assert [position for position, _ in second.kept] == [8, 16]
    (third,) = run(subject, request(prompts[2]), 18, num_blocks=2)
    assert third.read == second.kept[0][1]


def test_a_chunk_keeps_what_is_in_it_and_at_its_end() -> None:
    subject, _ = keeper(8)
    asked = request(range(18))
    first, second, third = run(subject, asked, 7, 16, 18, num_blocks=1)
    assert [position for position, _ in first.kept] == [4]
    assert [position for position, _ in second.kept] == [16]
    assert third.kept == ()


def test_a_single_token_on_the_way_is_not_distinguished() -> None:
    subject, _ = keeper(8)
    first, second, _ = run(subject, request(range(11)), 7, 10, 11)
    assert first.kept == ()
    assert second.kept == ()
    last = run(subject, request(range(20, 31)), 7, 8, 11)[1]
    assert [position for position, _ in last.kept] == [8]


def test_of_an_output_the_last_state_is_kept() -> None:
    subject, _ = keeper(8)
    asked = request(range(5), num_output=200)
    uses = run(subject, asked, 5, *range(6, 200))
    kept = [position for use in uses for position, _ in use.kept]
    assert kept == [4, 64, 128, 192]
    names = name_blocks(asked, SIZE, 200)
    assert subject.num_known(names) == 48
    assert subject.num_known(names[:47]) == 1


def test_where_no_slot_is_left_nothing_is_kept() -> None:
    subject, slots = keeper(2)
    slots.take()
    asked = request(range(10))
    subject.begin(asked, None, 0)
    assert subject.use(asked, 0, 10, is_ahead=False).kept == ()


def test_whoever_goes_on_from_the_last_free_slot_makes_it_its_own() -> None:
    subject, slots = keeper(2)
    run(subject, request(range(10)), 10)
    names = name_blocks(request(range(10)), SIZE, 9)
    while slots.num_free > 1:
        slots.take()
    assert subject.num_known(names) == 2
    assert subject.can_begin
    asked = request(range(10))
    subject.begin(asked, names[1], 2)
    assert asked.slots.own == asked.slots.read
    assert not subject.can_begin
    assert subject.num_known(names) == 0
    subject.commit(asked, subject.use(asked, 8, 10, is_ahead=False), is_running=True)
    subject.end(asked)
    assert slots.num_free == 1


def test_what_a_step_keeps_of_a_request_that_ended_meanwhile_has_no_name() -> None:
    subject, slots = keeper(4)
    asked = request(range(10))
    subject.begin(asked, None, 0)
    use = subject.use(asked, 0, 10, is_ahead=False)
    assert use.kept
    subject.end(asked)
    subject.check([])
    subject.commit(asked, use, is_running=False)
    subject.check([])
    assert subject.num_known(name_blocks(asked, SIZE, 10)) == 0
    assert slots.num_free == 4


def test_a_step_that_follows_reads_what_the_one_before_writes() -> None:
    subject, _ = keeper(6)
    run(subject, request(range(10)), 10)
    asked = request(range(10))
    names = name_blocks(asked, SIZE, 9)
    subject.begin(asked, names[1], 2)
    first = subject.use(asked, 8, 10, is_ahead=False)
    second = subject.use(asked, 10, 11, is_ahead=True)
    assert first.read not in (BEGINNING, asked.slots.own)
    assert second.read == second.write == asked.slots.own
    assert Plan([Chunk(asked, 8, 2, state=first)], [], None).num_tokens == 2
