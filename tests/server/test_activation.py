"""Adapters that begin in the middle of a prompt: where, and whose KV blocks those before are."""

import hypothesis.strategies as st
import numpy as np
from hypothesis import given

from loramux_server.engine.activation import last_place
from loramux_server.engine.base import Base
from loramux_server.engine.batch import Batch, grouped
from loramux_server.engine.plan import Chunk
from loramux_server.engine.prefix import name_blocks
from loramux_server.engine.request import Request
from loramux_server.lora.adapter_cache import Tier
from loramux_server.lora.segments import Residence
from loramux_server.wire.adapter_source import AdapterSource
from loramux_server.wire.ask import Ask
from loramux_server.wire.messages import Submit
from loramux_server.wire.sampling import Sampling
from loramux_server.wire.weight_format import WeightFormat
from tests.support.engine import InlineExecutor
from tests.support.fake import completion, fake_engine, fake_source

FEW = st.integers(0, 2)
SAMPLING = Sampling(max_tokens=100, seed=0)
BLOCK = 4


@given(st.lists(FEW, max_size=30), st.lists(FEW, min_size=1, max_size=5))
def test_the_last_place_is_the_last(tokens: list[int], pattern: list[int]) -> None:
    places = [i for i in range(len(tokens)) if tokens[i : i + len(pattern)] == pattern]
    assert last_place(tokens, pattern) == (places[-1] if places else None)


def request(prompt: list[int], invocation: tuple[int, ...] = (), digest: str = "a") -> Request:
    source = AdapterSource(digest, "", 8, 8, invocation=invocation) if digest else None
    return Request.of(Submit(0, Ask(prompt, source, SAMPLING)), Base(4), 0.0)


def names(subject: Request) -> list[bytes]:
    return name_blocks(subject, BLOCK, subject.num_tokens)


def test_before_it_begins_blocks_are_those_of_the_base() -> None:
    prompt = [*range(10, 20), 7, 8, *range(20, 24)]
    base, plain, active = (names(request(prompt, *more)) for more in (((), ""), ((),), ((7, 8),)))
    assert active[:2] == base[:2]
    assert active[2] != base[2]  # it begins in the middle of this one
    assert not set(active) & set(plain)
    assert names(request(prompt, (7, 8), "b"))[1:3] != active[1:3]
    assert names(request(prompt, (7, 9))) == base  # it does not begin


def test_a_block_says_where_in_it_an_adapter_begins() -> None:
    early, late = request([1, 7, 2, 5, 6]), request([1, 7, 2, 5, 6])
    early.active_from, late.active_from = 1, 2
    assert names(early) != names(late)


def test_one_that_begins_with_the_prompt_is_like_any_other() -> None:
    prompt = [7, 8, *range(20, 40)]
    assert names(request(prompt, (7, 8))) == names(request(prompt))


def test_what_was_made_for_a_completion_does_not_move_it() -> None:
    source, tokens = fake_source(1, 8, (7, 8)), [5, 7, 8, 6, 7, 8]
    found = [
        Request.of(Submit(0, Ask(tokens, source, SAMPLING, num_generated=count)), Base(4), 0.0)
        for count in (0, 1, 3, 5)
    ]
    assert [each.active_from for each in found] == [4, 1, 1, 0]
    assert [each.adapter is None for each in found] == [False, False, False, True]


def test_segments_begin_where_adapters_do_and_stay_long() -> None:
    decoding = [request([7, *range(9)], (7,)) for _ in range(3)]
    beginning = request([1, 2, 3, 7, 5], (7,))
    before = request([1, 2, 3, 4, 5, 7], (7,))
    chunks = [
        Chunk(decoding[0], 9, 1),
        Chunk(beginning, 1, 4),
        Chunk(decoding[1], 9, 1),
        Chunk(before, 0, 4),
        Chunk(request([1, 2], digest=""), 0, 2),
        Chunk(decoding[2], 9, 1),
    ]
    for chunk in chunks:
        chunk.request.blocks = [0, 1, 2]
    none = np.zeros((1, 1), np.int32)
    where = Residence(0, 8, WeightFormat.FLOAT32, none, none.astype(np.float32))
    laid_out = grouped(chunks)
    segments = Batch.build(laid_out, lambda _: where, BLOCK).input.segments
    assert [chunk.num_tokens for chunk in laid_out] == [4, 2, 4, 1, 1, 1]
    assert segments is not None
    # Two tokens of the one that begins, and the three that decode.
    assert (segments.start_S.tolist(), segments.end_S.tolist()) == ([8], [13])


def test_a_prompt_without_the_tokens_loads_nothing() -> None:
    engine, _, cache, _ = fake_engine(num_blocks=40, rows=8, executor=InlineExecutor())
    greedy = Sampling(max_tokens=3, seed=0, temperature=0.0, ignore_eos=True)
    engine.receive([Submit(0, Ask([5, 6, 9], fake_source(1, 8, (6, 5)), greedy))])
    tokens = [token.token for _ in range(4) for token in engine.step().tokens]
    assert tokens == completion([5, 6, 9], 0, 3, eos=False)
    assert not cache.held(Tier.HOST)


def test_what_the_base_computed_is_reused_and_the_other_way_round() -> None:
    engine, scheduler, *_ = fake_engine(num_blocks=40, rows=8, executor=InlineExecutor())
    greedy = Sampling(max_tokens=2, seed=0, temperature=0.0, ignore_eos=True)
    talk, rest = list(range(10, 22)), [6, 7, 20, 21, 22]
    for number, (prompt, adapter, num_shared) in enumerate([
        (talk, 0, 0),
        ([*talk, *rest], 1, 12),  # all that the base made
        ([*talk, *rest], 1, 12 + 4),  # and its own
        ([*talk, *rest, 8], 0, 12),
        ([*talk[:8], 3, 3, 3, 3, 6, 7, 1], 1, 8),
        ([*talk[:8], 3, 3, 3, 3, 5, 5, 5], 0, 12),  # all that the adapter had of the base
    ]):  # fmt: skip
        before = scheduler.num_shared_tokens
        source = fake_source(adapter, 8, (6, 7)) if adapter else None
        engine.receive([Submit(number, Ask(prompt, source, greedy))])
        tokens: list[int] = []
        while len(tokens) < 2:
            tokens += [token.token for token in engine.step().tokens]
            engine.check()
        active_from = (last_place(prompt, (6, 7)) or 0) if adapter else 0
        assert tokens == completion(prompt, adapter, 2, eos=False, active_from=active_from)
        assert scheduler.num_shared_tokens - before == num_shared
