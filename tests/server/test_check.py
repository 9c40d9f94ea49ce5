"""What a base cannot serve is refused before anybody can name it; what it just can is not."""

import io
import struct
from dataclasses import replace
from typing import Any

import pytest

from loramux_adapters import Package, PackageError
from loramux_adapters.token_shape import TokenShape
from loramux_server.store.check import check_package
from loramux_server.store.finite import MAX_WEIGHT
from loramux_server.store.served_base import ServedBase
from loramux_server.wire.model_kind import ModelKind
from tests.adapters.files import (
    CONFIG,
    MODULE,
    TENSORS,
    data,
    header,
    manifest,
    package,
    pair,
    tensor_file,
)
from tests.support.bases import ROOMY

BASE = replace(ROOMY, layers={MODULE: (4, 3), "lm_head": (4, 9)}, vocab_size=9)
TOO_LARGE, NOT_FINITE = "ADAPTER_TOO_LARGE", "ADAPTER_NOT_FINITE"
UNSUPPORTED, MISMATCH = "UNSUPPORTED_ADAPTER_FEATURE", "ADAPTER_BASE_MISMATCH"
OUTER = package(
    {**TENSORS, **pair("lm_head", 2, features=(4, 9))},
    CONFIG | {"target_modules": ["q_proj", "lm_head"]},
)
"""Low-rank, but one of its modules is no layer."""


def check(raw: bytes, base: ServedBase = BASE) -> Package:
    return check_package(io.BytesIO(raw), len(raw), base)


def refused(raw: bytes, base: ServedBase = BASE) -> tuple[str, str]:
    """Return the reason and the message with which a package is refused."""
    with pytest.raises(PackageError) as caught:
        check(raw, base)
    return caught.value.reason, str(caught.value)


def noted(**notes: Any) -> bytes:
    return tensor_file(header(metadata={"loramux.manifest": manifest(**notes)}), data())


def test_a_template_that_is_none_is_refused() -> None:
    assert check(noted(chat_template="{{ messages }}")).notes
    reason, message = refused(noted(chat_template="{{ messages"))
    assert reason == "INVALID_ADAPTER_CONFIG"
    assert message.startswith("chat_template: ")


def test_tokens_to_stop_at_are_those_of_the_base() -> None:
    assert check(noted(generation={"stop_token_ids": [0, 8]})).notes
    reason, message = refused(noted(generation={"stop_token_ids": [8, 9]}))
    assert reason == MISMATCH
    assert "stop_token_ids holds token 9; the base model has tokens from 0 to 8" in message


def test_what_a_written_text_begins_with_is_for_bases_that_write_another() -> None:
    base = replace(BASE, kind=ModelKind.SEQ2SEQ)
    assert check(noted(generation={"forced_bos_token_id": 8, "decoder_start_token_id": 0}), base)
    for name in ("forced_bos_token_id", "decoder_start_token_id"):
        reason, message = refused(noted(generation={name: 9}), base)
        assert (reason, f"{name} holds token 9; the base model has" in message) == (MISMATCH, True)
    assert check(noted(generation={"decoder_start_token_id": 0}))
    reason, message = refused(noted(generation={"forced_bos_token_id": 8}))
    assert (reason, "only on encoder-decoder base models" in message) == (UNSUPPORTED, True)


def test_a_base_for_low_rank_changes_of_layers_takes_nothing_else() -> None:
    low_rank = replace(BASE, takes_edits=False)
    assert check(package(), low_rank)
    assert check(OUTER).contents.outer_modules
    for raw in (OUTER, virtual(5)):
        reason, message = refused(raw, replace(low_rank, token=TOKEN))
        assert reason == UNSUPPORTED
        assert "more than low-rank updates" in message


TOKEN = TokenShape(8, ((2, 4, 4),) * 3)
WITH_TOKENS = replace(ROOMY, token=TOKEN, context_length=20)


def virtual(count: int, last: float = 1.0) -> bytes:
    """Return a package of `count` virtual tokens, all of ones but for the last value."""
    values = struct.pack(f"<{count * 8}f", *[1.0] * (count * 8 - 1), last)
    config = {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": count, "token_dim": 8}
    tensors = {"prompt_embeddings": ("F32", [count, 8], values)}
    written = {"loramux.manifest": manifest(config, kind="prompt_tuning")}
    return tensor_file(header(tensors, written), values)


def test_virtual_tokens_leave_room_for_a_prompt_and_a_completion() -> None:
    assert check(virtual(18), WITH_TOKENS).virtual
    reason, message = refused(virtual(19), WITH_TOKENS)
    assert reason == TOO_LARGE
    assert "19 virtual tokens; the context of 20 leaves no room" in message
    # Who brings none leaves room for them in any context.
    assert check(package(), replace(BASE, context_length=1))


@pytest.mark.parametrize("last", [float("nan"), float("inf"), 2 * MAX_WEIGHT])
def test_virtual_tokens_are_numbers_to_calculate_with(last: float) -> None:
    reason, message = refused(virtual(5, last), WITH_TOKENS)
    assert reason == NOT_FINITE
    assert "tensor prompt_embeddings" in message


def test_virtual_tokens_count_in_the_memory_of_adapters() -> None:
    size = 5 * 8 * 4  # tokens, width, float32
    assert check(virtual(5), replace(WITH_TOKENS, max_host_bytes=size))
    assert refused(virtual(5), replace(WITH_TOKENS, max_host_bytes=size - 1))[0] == TOO_LARGE
    # A row of 20 bytes: a granule of the adapter itself, and one for its tokens.
    small = replace(WITH_TOKENS, row_bytes=size // 8, max_rows=16)
    assert check(virtual(5), small)
    reason, message = refused(virtual(5), replace(small, max_rows=15))
    assert reason == TOO_LARGE
    assert "takes 16 rank rows of 15" in message


def test_virtual_tokens_are_as_wide_as_those_of_the_base() -> None:
    assert refused(virtual(5), replace(WITH_TOKENS, token=TokenShape(9, ())))[0] == MISMATCH
