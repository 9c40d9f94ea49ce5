"""Mistakes by which one request could get what is another's, each a small patch."""

import dataclasses
import random
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import pytest
import torch

from loramux_server.engine import batch, sampler
from loramux_server.engine.prefix import name_blocks
from loramux_server.engine.residents import Residents
from loramux_server.kernels.add_lora import add_lora
from loramux_server.lora.segments import Residence, Segments
from tests.kernels import test_add_lora

Patch = pytest.MonkeyPatch


def keep_a_row_after_eviction(patch: Patch) -> None:
    where = Residents.where
    first = WeakKeyDictionary[Residents, dict[str, Residence]]()

    def where_(self: Residents, digest: str) -> Residence:
        return first.setdefault(self, {}).setdefault(digest, where(self, digest))

    patch.setattr(Residents, "where", where_)


def name_blocks_without_adapter(patch: Patch) -> None:
    def name_blocks_(request: Any, *sizes: int) -> list[bytes]:
        adapter, request.adapter = request.adapter, None
        try:
            return name_blocks(request, *sizes)
        finally:
            request.adapter = adapter

    patch.setattr("loramux_server.engine.contexts.name_blocks", name_blocks_)


def end_a_segment_one_token_early(patch: Patch) -> None:
    segments = batch._segments

    def segments_(*arguments: Any) -> Segments | None:
        made = segments(*arguments)
        return made and dataclasses.replace(made, end_S=made.end_S - 1)

    patch.setattr(batch, "_segments", segments_)


def give_the_base_the_first_rows(patch: Patch) -> None:
    segments = batch._segments

    def segments_(chunks: Any, query_start: Any, residence: Any) -> Segments | None:
        made = segments(chunks, query_start, residence)
        if made is not None:
            made.start_S[0] = 0  # requests of the base come first
        return made

    patch.setattr(batch, "_segments", segments_)


def share_random_numbers(patch: Patch) -> None:
    chance = random.Random(0)
    patch.setattr(sampler, "uniform", lambda seed, position: chance.random())


def scale_all_as_the_first(patch: Patch) -> None:
    def run(y: Any, x: Any, a: Any, b: Any, columns: Any, segments: Segments, group: int) -> None:
        first = np.broadcast_to(segments.scale_GSP[:, :1], segments.scale_GSP.shape)
        add_lora(y, x, a, b, columns, dataclasses.replace(segments, scale_GSP=first), group)

    patch.setitem(test_add_lora.FORMS, "definition", lambda: run)


def mask_by_multiplying(patch: Patch) -> None:
    patch.setattr(torch.Tensor, "masked_fill", lambda self, mask, value: self * ~mask)
