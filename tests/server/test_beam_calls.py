"""What a call with beams asks of the engine, step by step, and what is left when it ends."""

import asyncio
import math
from typing import Any

import pytest

from loramux.errors import (
    DeadlineExceededError,
    InvalidArgumentError,
    ResourceExhaustedError,
    UnavailableError,
)
from loramux.v1.generation_pb2 import SamplingParams, StreamGenerateResponse
from loramux_server.services.generation.beam_fields import beams_of, searched, searching_defaults
from loramux_server.services.generation.sampling import samplings
from loramux_server.store.policy import Policy
from loramux_server.store.reference import DEFAULT_TENANT
from loramux_server.wire.messages import (
    Cancel,
    Failure,
    Finish,
    Logprobs,
    Started,
    Submit,
    Token,
)
from tests.server.test_limits import MODEL
from tests.server.test_streaming import Served, woken
from tests.support.policies import KeptPolicies
from tests.support.rooms import open_room

PROMPT = 5
LIKELY = [(10, -0.5), (11, -1.0), (2, -1.25), (12, -2.0)]
"""What follows whatever there is, the end token among it."""


class Search:
    """A stream with two beams, and the engine that works on it."""

    def __init__(self, served: Served, **options: Any) -> None:
        self.served = served
        self.engine = served.engine
        self.stream = served.stream(**{"num_beams": 2, "n": 2, "max_tokens": 4, **options})
        self.first = asyncio.ensure_future(anext(self.stream))

    @property
    def asked(self) -> list[Submit]:
        """What the engine works on."""
        submits = [message for message in self.engine.sent if isinstance(message, Submit)]
        return [submit for submit in submits if submit.request_id in self.engine._calls]

    async def step(self, likely: list[tuple[int, float]] = LIKELY) -> None:
        """Let the engine make the token of each request that it has."""
        await asyncio.sleep(0)
        tokens = [
            Token(each.request_id, 10, Finish.LENGTH, Logprobs(-0.5, likely)) for each in self.asked
        ]
        assert tokens
        self.engine.report(*tokens)
        await woken(self.first)

    async def rest(self) -> list[StreamGenerateResponse]:
        return [await self.first, *[response async for response in self.stream]]


async def test_each_step_asks_for_a_token_of_every_beam() -> None:
    search = Search(Served())
    await asyncio.sleep(0)
    (first,) = search.asked
    assert (first.ask.prompt, first.ask.num_generated) == ([PROMPT], 0)
    assert first.timeout is not None and first.timeout <= 60
    assert (first.ask.sampling.max_tokens, first.ask.sampling.num_logprobs) == (1, 3)
    assert first.ask.sampling.is_greedy and first.ask.sampling.ignore_eos
    for length in (1, 2, 3):
        await search.step()
        assert [each.ask.num_generated for each in search.asked] == [length] * 2
        assert [each.ask.prompt[0] for each in search.asked] == [PROMPT] * 2
        # Who was admitted is not refused any more for others that wait.
        assert {each.timeout for each in search.asked} == {math.inf}
    assert [each.ask.prompt[1:] for each in search.asked] == [[10, 10, 10], [10, 10, 11]]
    await search.step()
    best, other = await search.rest()
    assert (list(best.delta.token_ids), best.delta.beam_score) == ([10] * 4, -0.5)
    assert (best.delta.index, other.delta.index) == (0, 1)
    assert other.usage.completion_tokens == 1 + 3 * 2
    assert search.engine._calls == {}
    assert not any(isinstance(message, Cancel) for message in search.engine.sent)


async def test_an_end_among_the_likeliest_ends_a_completion() -> None:
    search = Search(Served(), n=1, early_stopping=True, length_penalty=0.0)
    await search.step([(2, -0.25), (10, -0.5), (11, -1.0)])
    await search.step([(2, -0.25), (10, -0.5), (11, -1.0)])
    (best,) = await search.rest()
    assert (list(best.delta.token_ids), best.delta.stop_token_id) == ([2], 2)
    assert best.usage.completion_tokens == 3
    assert best.sampling.length_penalty == 0.0


async def test_all_beams_wait_for_the_slowest() -> None:
    search = Search(Served())
    await search.step()
    one, other = search.asked
    reported = Logprobs(-0.5, LIKELY)
    search.engine.report(Token(one.request_id, 10, Finish.LENGTH, reported))
    await woken(search.first)
    assert search.asked == [other]
    search.engine.report(Token(other.request_id, 10, Finish.LENGTH, reported))
    await woken(search.first)
    assert [each.ask.num_generated for each in search.asked] == [2, 2]
    search.first.cancel()


async def test_who_hangs_up_takes_all_beams_along() -> None:
    search = Search(Served())
    await search.step()
    ids = [each.request_id for each in search.asked]
    search.first.cancel()
    await asyncio.wait([search.first])
    assert [m for m in search.engine.sent if isinstance(m, Cancel)] == list(map(Cancel, ids))
    assert search.engine._calls == {}
    requests = search.served.metrics.registry.get_sample_value(
        "loramux_requests_total", {"adapter": "base", "outcome": "cancelled"}
    )
    assert requests == 1


@pytest.mark.parametrize("num_steps", [0, 2])
async def test_a_deadline_ends_a_search_at_any_step(
    monkeypatch: pytest.MonkeyPatch, num_steps: int
) -> None:
    now = 0.0  # on a clock of its own: a busy machine would be late by itself
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: now)
    search = Search(Served(), timeout=0.05)
    assert not await woken(search.first)
    for _ in range(num_steps):
        await search.step()
    now = 1.0
    with pytest.raises(DeadlineExceededError, match=r"within 0\.05 s"):
        await search.first
    assert search.engine._calls == {}


async def test_a_beam_that_fails_ends_the_search() -> None:
    search = Search(Served())
    await search.step()
    one, other = search.asked
    failure = Failure(other.request_id, "ENGINE_OUT_OF_MEMORY", "no memory")
    search.engine.report(failures=[failure])
    with pytest.raises(UnavailableError, match="no memory"):
        await search.first
    assert search.engine.sent[-1] == Cancel(one.request_id)
    assert search.engine._calls == {}


async def test_a_search_waits_as_a_request_of_as_many_completions() -> None:
    room = open_room(max_running=0, max_waiting=3)
    served = Served(room=room)
    search = Search(served)
    await asyncio.sleep(0)
    with pytest.raises(ResourceExhaustedError) as caught:
        await anext(served.stream(n=2))
    assert caught.value.reason == "QUEUE_FULL"
    (first,) = search.asked
    search.engine.report(started=[Started(first.request_id, 0.0)])
    for _ in range(4):
        await search.step()
    await search.rest()
    assert room._taken.completions == 0


async def test_a_search_pays_for_all_of_its_beams() -> None:
    # Room for the prompt and two beams of four tokens, and for a token less.
    for per_minute, is_enough in ((9, True), (8, False)):
        policy = Policy(tenant=DEFAULT_TENANT, tokens_per_minute=per_minute)
        search = Search(Served(policies=KeptPolicies(policy)))
        if not is_enough:
            with pytest.raises(ResourceExhaustedError, match="this request may use 9"):
                await search.first
            continue
        await search.step()
        await search.step()
        search.first.cancel()
        await asyncio.wait([search.first])
        # One of the prompt and three of beams are gone, and five are left.
        with pytest.raises(ResourceExhaustedError):
            await anext(search.served.stream(max_tokens=5))
        left = asyncio.ensure_future(anext(search.served.stream(max_tokens=4)))
        assert not await woken(left)
        left.cancel()


def test_of_an_adapters_defaults_those_of_draws_do_not_count() -> None:
    defaults = {"temperature": 0.5, "top_k": 3, "top_p": 0.5, "min_p": 0.5, "max_tokens": 7}
    beams = SamplingParams(num_beams=2)
    assert searching_defaults(beams, defaults, {}) == {"max_tokens": 7}
    of_base = {"max_tokens": 9, "min_p": 0.1, "repetition_penalty": 1.1}
    assert searching_defaults(beams, {"top_k": 3}, of_base) == {"max_tokens": 9}
    without = SamplingParams(num_beams=1)
    assert searching_defaults(without, defaults, of_base) == defaults | {"repetition_penalty": 1.1}


def test_a_default_that_beams_cannot_have_is_to_be_taken_back() -> None:
    with pytest.raises(
        InvalidArgumentError, match=r"repetition_penalty is 1\.5.*override the adapter"
    ):
        searched(SamplingParams(num_beams=2, repetition_penalty=1.5))
    assert searched(SamplingParams(num_beams=2, repetition_penalty=1.0)).temperature == 0.0
    params = SamplingParams(repetition_penalty=1.5)
    assert searched(params) is params


def test_there_are_more_tokens_than_beams_and_ends() -> None:
    params = SamplingParams(num_beams=8, stop_token_ids=[3, 4, 5])
    (sampling,) = samplings(params, 10, MODEL)
    found = beams_of(params, sampling, MODEL, 0)
    assert found is not None
    assert (sorted(found.ends), found.num_likely) == ([2, 3, 4, 5], 12)
    with pytest.raises(InvalidArgumentError, match="num_beams is 8; expected at most 7"):
        beams_of(params, sampling, MODEL, 11)
    params.ignore_eos = True
    (sampling,) = samplings(params, 10, MODEL)
    found = beams_of(params, sampling, MODEL, 11)
    assert found is not None
    assert sorted(found.ends) == [3, 4, 5]
