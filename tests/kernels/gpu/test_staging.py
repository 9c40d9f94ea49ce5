"""What a step tells the device: arrays in one piece of memory, the same for like steps."""

import itertools
import random
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from loramux_server.engine.token_counts import SampledRow, adjustments_of, counts_of
from loramux_server.kernels.adjust import Adjustments, adjust
from loramux_server.kernels.attention import AttentionBatch
from loramux_server.kernels.draw import Draws
from loramux_server.kernels.gpu.plan import Plan
from loramux_server.kernels.gpu.staged import Stager
from loramux_server.kernels.gpu.staging import Staging
from loramux_server.kernels.gpu.tiles import BASE, SHARED_TILE, tokens
from loramux_server.kernels.states import StateBatch
from loramux_server.kernels.step_input import StepInput
from loramux_server.lora.segments import Residence, Segments
from loramux_server.wire.sampling import Sampling
from loramux_server.wire.weight_format import WeightFormat

BLOCK = 16
VOCAB = 100


def test_arrays_arrive_and_begin_where_no_kernel_is_compiled_again(device: torch.device) -> None:
    shapes = {
        "odd": (torch.int32, (3,)),
        "wide": (torch.int64, (5,)),
        "table": (torch.int32, (2, 7)),
        "number": (torch.float64, (1, 3)),
        "last": (torch.int32, (1,)),
    }
    staging = Staging(shapes, device)
    here = {}
    for step in range(3):
        here = staging.begin()
        for number, array in enumerate(here.values()):
            array[:] = np.arange(array.size).reshape(array.shape) + 100 * number + step
        staging.send()
    for name, (dtype, shape) in shapes.items():
        there = staging.on_device[name]
        assert (there.dtype, tuple(there.shape)) == (dtype, shape)
        assert there.data_ptr() % 16 == 0
        assert np.array_equal(there.cpu().numpy(), here[name])


def test_a_host_that_is_ahead_leaves_what_is_on_its_way(device: torch.device) -> None:
    staging = Staging({"number": (torch.int64, (1 << 16,))}, device)
    arrived = []
    if device.type == "cuda":
        torch.cuda._sleep(200_000_000)
    for step in range(6):
        staging.begin()["number"][:] = step
        staging.send()
        arrived.append(staging.on_device["number"].clone())
    assert [set(each.tolist()) for each in arrived] == [{step} for step in range(6)]


def step(lengths: list[int], residences: list[Residence | None] | None = None) -> StepInput:
    """Return a step of requests with so many tokens each, all from the beginning of a context."""
    border = np.cumsum([0, *lengths], dtype=np.int32)
    blocks = -(-max(lengths) // BLOCK)
    tokens = torch.arange(int(border[-1]))
    segments, runs = None, []
    for row, group in itertools.groupby(enumerate(residences or []), lambda pair: pair[1]):
        numbers = [number for number, _ in group]
        if row:
            runs.append((int(border[numbers[0]]), int(border[numbers[-1] + 1]), row))
    if runs:
        segments = Segments.build(*map(list, zip(*runs, strict=True)))
    return StepInput(
        token_T=tokens,
        position_T=tokens,
        sampled_R=torch.from_numpy(border[1:].astype(np.int64) - 1),
        attention=AttentionBatch(
            border, np.array(lengths, np.int32), np.zeros((len(lengths), blocks), np.int32), BLOCK,
            tokens,
        ),
        segments=segments,
    )  # fmt: skip


@cache
def residence(row: int) -> Residence:
    ranks, scales = np.full((1, 1), 8, np.int32), np.ones((1, 1), np.float32)
    return Residence(row, 8, WeightFormat.FLOAT32, ranks, scales)


def test_steps_with_prompts_of_like_size_have_one_form_and_one_memory(device: torch.device) -> None:
    stager = Stager(device, Plan.of(device))
    first, _ = stager.stage(step([30, 1]))
    second, staged = stager.stage(step([20, 5, 3]))
    assert first.graph_key == second.graph_key is not None
    assert first.token_T.data_ptr() == second.token_T.data_ptr()
    assert second.token_T.tolist() == [*range(28), *[0] * 4]
    assert second.attention.slot_T.tolist() == [*range(28), *[-1] * 4]
    assert second.sampled_R.tolist() == [19, 24, 27, 0]
    assert staged.tiles.count_I.tolist()[1:] == [0] * (len(staged.tiles.count_I) - 1)
    assert staged.batch.context_B.tolist() == [20, 5, 3, 0]
    assert staged.batch.query_start_B.tolist() == [0, 20, 25, 28, 28]
    there = staged.batch.tile_request_I.tolist()
    assert there.count(0) == -(-20 // stager.query_tile)
    assert there[-1] == -1
    long, _ = stager.stage(step([900, 1]))
    assert long.graph_key == stager.stage(step([1024]))[0].graph_key is not None
    # What has a form of its own each time is none.
    assert stager.stage(step([2048, 1]))[0].graph_key is None
    # Several rows of a request, as drafts have them, take more room.
    asked = replace(step([30, 1]), sampled_R=torch.arange(31))
    drafted, _ = stager.stage(asked)
    assert drafted.graph_key not in (None, first.graph_key)
    assert drafted.sampled_R.tolist() == [*range(31), 0]


def test_steps_that_draw_in_the_same_way_have_one_form(device: torch.device) -> None:
    stager = Stager(device, Plan.of(device))
    likeliest = stager.stage(step([1] * 3))[0]
    assert likeliest.draws is None
    row = [1.0, 0.0, 1.0, -float("inf"), 0.5]
    forms = []
    for is_cut in (True, False):
        for number in (0.25, 0.75):
            rows = [[*row[:4], number], [0.0] * 5, row]
            draws = Draws(torch.tensor(rows, dtype=torch.float64), is_cut)
            given = stager.stage(replace(step([1] * 3), draws=draws))[0]
            assert given.draws is not None
            assert given.draws.is_cut == is_cut
            # Who stands for no request takes the likeliest token.
            assert given.draws.rows_R5.tolist() == [*rows, [0.0] * 5]
            assert len(given.draws.rows_R5) == len(given.sampled_R)
            forms.append(given.graph_key)
    assert forms[0] == forms[1]
    assert forms[2] == forms[3]
    assert len({likeliest.graph_key, *forms}) == 3


def said(rows: list[tuple[dict[str, Any], list[int], bool]]) -> Adjustments | None:
    """Return what rows of these parameters and outputs say, some with a token still to come."""
    turns = []
    for parameters, output, lacks_one in rows:
        sampling = Sampling(max_tokens=99, seed=0, **parameters)
        counts = counts_of(sampling, [0, 3], [1], VOCAB)
        turns.append(SampledRow(counts, len(output) + lacks_one, output))
    return adjustments_of(turns)


SAID: list[dict[str, Any]] = [
    {},
    {"presence_penalty": 1.0, "frequency_penalty": 0.5},
    {"repetition_penalty": 3.0},
    {"logit_bias": {0: 7.0, 5: -2.0}, "frequency_penalty": -1.5},
    {"min_tokens": 40, "repetition_penalty": 0.5},
]


def test_what_rows_say_of_tokens_arrives_in_whatever_room(device: torch.device) -> None:
    stager, rng = Stager(device, Plan.of(device)), random.Random(0)
    num_said = 0
    for _ in range(60):
        lengths = [rng.choice([1, 1, 1, 30]) for _ in range(rng.randrange(1, 9))]
        rows = [
            (rng.choice(SAID), [rng.randrange(VOCAB) for _ in range(rng.choice([0, 2, 90]))],
             rng.random() < 0.5)
            for _ in lengths
        ]  # fmt: skip
        given = replace(step(lengths), adjustments=said(rows))
        given = replace(given, token_T=torch.randint(0, VOCAB, given.token_T.shape))
        staged = stager.stage(given)[0]
        if given.adjustments is None:
            assert staged.adjustments is None
            continue
        num_said += 1
        assert staged.adjustments is not None
        logits = torch.randn(len(staged.sampled_R), VOCAB).to(device)
        inputs = staged.token_T[staged.sampled_R]
        found = adjust(logits, inputs, staged.adjustments)
        count = len(lengths)
        wanted = adjust(logits[:count].cpu(), inputs[:count].cpu(), given.adjustments)
        torch.testing.assert_close(found[:count].cpu(), wanted)
        assert torch.equal(found[count:], logits[count:])  # rows of nobody
    assert num_said > 30


def test_steps_in_which_rows_say_something_have_forms_of_their_own(device: torch.device) -> None:
    stager = Stager(device, Plan.of(device))

    def form(*outputs: list[int]) -> object:
        rows = [(SAID[1], output, False) for output in outputs]
        given = replace(step([1] * 3), adjustments=said(rows))
        return stager.stage(given)[0].graph_key

    few, many = form([5], [6], [7]), form(list(range(50)), list(range(50)), [])
    assert few == form([8, 9], [], [7])
    reported = stager.stage(replace(step([1] * 3), returns_logprobs=True))[0].graph_key
    assert None not in (few, many, reported)
    assert len({few, many, reported, stager.stage(step([1] * 3))[0].graph_key}) == 4


@pytest.mark.parametrize(
    ("rows", "size"),
    [([0] * 8, SHARED_TILE), ([0, 0, 0, 0, 8, 8, 8, 8], SHARED_TILE), ([*range(0, 64, 8)], 1),
     ([0, 0, None, 8, 8, None, 16, 16], 1), ([None] * 8, 1)],
)  # fmt: skip
def test_tiles_of_decode_are_as_long_as_adapters_are_shared(
    rows: list[int | None], size: int, device: torch.device
) -> None:
    residences = [None if row is None else residence(row) for row in rows]
    given, staged = Stager(device, Plan.of(device)).stage(step([1] * 8, residences))
    assert staged.tiles.size == size
    adapters = [BASE if row is None else row // 8 for row in rows]
    assert staged.tiles.adapter_T.tolist() == adapters
    covered = tokens(staged.tiles).tolist()
    assert covered == [*range(8)]
    assert given.graph_key is not None
    # What recurrent layers take is in no room that others share.
    slots = np.arange(1, 9)
    alone = replace(step([1] * 8, residences), states=StateBatch(slots, slots))
    given, staged = Stager(device, Plan.of(device)).stage(alone)
    assert staged.tiles.size == size
    assert tokens(staged.tiles).tolist() == covered
    assert given.graph_key is None


def test_there_is_room_for_no_more_logits_than_tokens(device: torch.device) -> None:
    drafts = step([5] * 20)
    given = replace(drafts, sampled_R=torch.arange(100))
    staged, _ = Stager(device, Plan.of(device)).stage(given)
    assert len(given.sampled_R) <= len(staged.sampled_R) <= len(staged.token_T)
