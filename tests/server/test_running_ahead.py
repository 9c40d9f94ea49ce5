"""Steps that are started before the one before them has ended."""

from loramux_server.engine.messages import Cancel, Sampling, Submit
from tests.support.fake import completion, fake_engine, fake_source

A, B = fake_source(1, 8), fake_source(2, 16)


def outputs(*, runs_ahead: bool, num_steps: int = 200) -> tuple[dict[int, list[int]], int]:
    """Return what requests of different lengths, some of which end early, are answered."""
    engine, scheduler, _, model = fake_engine(num_blocks=40, rows=64, runs_ahead=runs_ahead)
    executor = engine._residents._executor
    found: dict[int, list[int]] = {}
    for number, adapter in enumerate([None, A, B, A, None, B]):
        sampling = Sampling(
            max_tokens=4 + 3 * number, seed=0, temperature=0.0, ignore_eos=number % 2 == 0
        )
        engine.receive([Submit(number, [5, 6, 7 + number], adapter, sampling)])
        found[number] = []
    for _ in range(num_steps):
        while len(executor):  # type: ignore[arg-type]
            executor.finish()  # type: ignore[attr-defined]
        for token in engine.step().tokens:
            found[token.request_id].append(token.token)
        engine.check()
    assert not scheduler.running
    assert not scheduler.waiting
    return found, model.num_ahead


def test_the_tokens_are_those_of_one_step_after_the_other() -> None:
    plain, none = outputs(runs_ahead=False)
    ahead, many = outputs(runs_ahead=True)
    assert ahead == plain
    assert plain[0] == completion([5, 6, 7], 0, 4, eos=False)
    assert none == 0
    assert many > 10


def test_a_step_waits_for_the_one_before_it_where_tokens_are_drawn() -> None:
    engine, _, _, model = fake_engine(num_blocks=40, rows=64, runs_ahead=True)
    for number, temperature in enumerate((0.0, 1.0)):
        sampling = Sampling(max_tokens=9, seed=0, temperature=temperature, ignore_eos=True)
        engine.receive([Submit(number, [5, 6, 7], None, sampling)])
    for _ in range(4):
        engine.step()
    assert model.num_ahead == 0


def test_what_is_cancelled_in_flight_is_answered_no_more() -> None:
    engine, scheduler, _, model = fake_engine(num_blocks=40, rows=64, runs_ahead=True)
    sampling = Sampling(max_tokens=9, seed=0, temperature=0.0, ignore_eos=True)
    for number in range(2):
        engine.receive([Submit(number, [5, 6, 7 + number], None, sampling)])
    for _ in range(3):
        engine.step()
    assert model.num_ahead
    engine.receive([Cancel(0)])
    used = scheduler.num_used_blocks
    answered = [token.request_id for _ in range(20) for token in engine.step().tokens]
    assert set(answered) == {1}
    assert used
    assert scheduler.num_used_blocks == 0
