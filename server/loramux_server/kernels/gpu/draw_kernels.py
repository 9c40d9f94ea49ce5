"""Passes over logits for `draw.py`: weights, the search for a token, and its id.

Each program handles a chunk of one row. Legend as in `draw.py`.
"""

import triton
import triton.language as tl

DIGITS = tl.constexpr(4)
"""Bits of a logit that a pass of the search finds."""
PARTS = tl.constexpr(16)
"""Parts into which it divides the range: 2 ** DIGITS."""


@triton.jit
def key(logit_V: tl.tensor) -> tl.tensor:
    """Return integers that are ordered as the floats are; -0.0 equals 0.0."""
    bits_V = (logit_V + 0.0).to(tl.int32, bitcast=True)
    return tl.where(bits_V < 0, bits_V ^ 0x7FFFFFFF, bits_V).to(tl.int64)


@triton.jit
def weigh(
    p_logits: tl.tensor,
    stride: tl.tensor,
    p_most: tl.tensor,
    p_rows: tl.tensor,
    p_weight: tl.tensor,
    p_mass: tl.tensor,
    p_shown: tl.tensor,
    SIZE: tl.constexpr,
    UNITS: tl.constexpr,
    BLOCK_V: tl.constexpr,
) -> None:
    """Write the weight of each token of a chunk, its mass, and the mass of what min-p keeps."""
    i_row, i_chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    o_V = i_chunk * BLOCK_V + tl.arange(0, BLOCK_V)
    m_V = o_V < SIZE
    most = tl.load(p_most + i_row).to(tl.float64)
    inverse, margin = tl.load(p_rows + i_row * 5), tl.load(p_rows + i_row * 5 + 3)
    logit_V = tl.load(p_logits + i_row * stride + o_V, mask=m_V, other=float("-inf"))
    weight_V = (tl.exp((logit_V.to(tl.float64) - most) * inverse) * UNITS).to(tl.int64)
    weight_V = tl.where(m_V, weight_V, 0)
    is_shown_V = logit_V >= (most + margin).to(tl.float32)
    tl.store(p_weight + i_row * SIZE + o_V, weight_V, mask=m_V)
    place = i_row * tl.num_programs(1) + i_chunk
    tl.store(p_mass + place, tl.sum(weight_V))
    tl.store(p_shown + place, tl.sum(tl.where(is_shown_V, weight_V, 0)))


@triton.jit
def _range(
    p_state: tl.tensor,
    p_sum: tl.tensor,
    p_next_state: tl.tensor,
    i_row: tl.tensor,
    i_chunk: tl.tensor,
    bits: tl.tensor,
    IS_FIRST: tl.constexpr,
    NUM_CHUNKS: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> tl.tuple:
    """Return the lower end of the range that the previous pass leaves, and the target.

    Args:
        p_state: Range before that pass, [R, 3]: lower end, amount above the range, target.
        p_sum: What that pass found above each border of its range, [R, C, J]; borders are
            2 ** (bits + DIGITS) apart, the first as far from the lower end.
        p_next_state: Where the range after it is written, by the program of the first chunk.
        i_row: The row.
        i_chunk: The chunk.
        bits: The next borders are 2 ** bits apart.
        IS_FIRST: Whether there was no pass before.
        NUM_CHUNKS: C.
        BLOCK_C: NUM_CHUNKS rounded up to a power of two.
    """
    low = tl.load(p_state + i_row * 3)
    above = tl.load(p_state + i_row * 3 + 1)
    target = tl.load(p_state + i_row * 3 + 2)
    if not IS_FIRST:
        o_C, o_J = tl.arange(0, BLOCK_C), tl.arange(0, PARTS)
        p_CJ = p_sum + (i_row * NUM_CHUNKS + o_C[:, None]) * PARTS + o_J[None, :]
        sum_J = tl.sum(tl.load(p_CJ, mask=o_C[:, None] < NUM_CHUNKS, other=0), axis=0)
        reaches_J = sum_J >= target
        # Sums decrease: the greatest that misses the target is that of the next border.
        above = tl.max(tl.where(reaches_J, -1, sum_J))
        low += tl.sum(reaches_J.to(tl.int64)) << (bits + DIGITS)
    if i_chunk == 0:
        tl.store(p_next_state + i_row * 3, low)
        tl.store(p_next_state + i_row * 3 + 1, above)
        tl.store(p_next_state + i_row * 3 + 2, target)
    return low, target


@triton.jit(do_not_specialize=["bits"])  # one compilation for all passes
def narrow(
    p_logits: tl.tensor,
    stride: tl.tensor,
    p_weight: tl.tensor,
    p_state: tl.tensor,
    p_sum: tl.tensor,
    p_next_state: tl.tensor,
    p_next_sum: tl.tensor,
    bits: tl.tensor,
    IS_FIRST: tl.constexpr,
    SIZE: tl.constexpr,
    IS_COUNT: tl.constexpr,
    BLOCK_V: tl.constexpr,
    NUM_CHUNKS: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    """Take the range that the pass before found, and sum what lies above each border in it."""
    i_row, i_chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    low, target = _range(
        p_state, p_sum, p_next_state, i_row, i_chunk, bits, IS_FIRST, NUM_CHUNKS, BLOCK_C
    )
    if target > 0:
        o_V = i_chunk * BLOCK_V + tl.arange(0, BLOCK_V)
        m_V = o_V < SIZE
        logit_V = tl.load(p_logits + i_row * stride + o_V, mask=m_V, other=float("-inf"))
        key_V = key(logit_V)
        if IS_COUNT:
            amount_V = m_V.to(tl.int64)
        else:
            amount_V = tl.load(p_weight + i_row * SIZE + o_V, mask=m_V, other=0)
        p_next = p_next_sum + (i_row * NUM_CHUNKS + i_chunk) * PARTS
        width = tl.full((), 1, tl.int64) << bits
        for j in tl.static_range(PARTS):
            is_above_V = key_V >= low + (j + 1) * width
            tl.store(p_next + j, tl.sum(tl.where(is_above_V, amount_V, 0)))


@triton.jit(do_not_specialize=["bits"])
def settle(
    p_logits: tl.tensor,
    stride: tl.tensor,
    p_weight: tl.tensor,
    p_state: tl.tensor,
    p_sum: tl.tensor,
    p_next_state: tl.tensor,
    p_found: tl.tensor,
    bits: tl.tensor,
    IS_FIRST: tl.constexpr,
    SIZE: tl.constexpr,
    IS_COUNT: tl.constexpr,
    BLOCK_V: tl.constexpr,
    NUM_CHUNKS: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    """Take the last range, a single key, and write mass above it, its weight and its count."""
    i_row, i_chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    low, target = _range(
        p_state, p_sum, p_next_state, i_row, i_chunk, bits, IS_FIRST, NUM_CHUNKS, BLOCK_C
    )
    if target > 0:
        o_V = i_chunk * BLOCK_V + tl.arange(0, BLOCK_V)
        m_V = o_V < SIZE
        logit_V = tl.load(p_logits + i_row * stride + o_V, mask=m_V, other=float("-inf"))
        weight_V = tl.load(p_weight + i_row * SIZE + o_V, mask=m_V, other=0)
        key_V = key(logit_V)
        is_equal_V = m_V & (key_V == low)
        p_RC = p_found + (i_row * NUM_CHUNKS + i_chunk) * 3
        tl.store(p_RC, tl.sum(tl.where(m_V & (key_V > low), weight_V, 0)))
        tl.store(p_RC + 1, tl.max(tl.where(is_equal_V, weight_V, 0)))
        tl.store(p_RC + 2, tl.sum(is_equal_V.to(tl.int64)))


@triton.jit
def pick(
    p_logits: tl.tensor,
    stride: tl.tensor,
    p_weight: tl.tensor,
    p_whole: tl.tensor,
    p_key: tl.tensor,
    p_before: tl.tensor,
    p_part: tl.tensor,
    p_target: tl.tensor,
    p_token: tl.tensor,
    SIZE: tl.constexpr,
    BLOCK_V: tl.constexpr,
) -> None:
    """Write the id of the token at which amounts, added up by token id, exceed the target."""
    i_row, i_chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    place = i_row * tl.num_programs(1) + i_chunk
    before, part = tl.load(p_before + place), tl.load(p_part + place)
    target = tl.load(p_target + i_row)
    if (before <= target) & (target < before + part):
        o_V = i_chunk * BLOCK_V + tl.arange(0, BLOCK_V)
        m_V = o_V < SIZE
        if tl.load(p_whole + i_row):
            amount_V = tl.load(p_weight + i_row * SIZE + o_V, mask=m_V, other=0)
        else:
            logit_V = tl.load(p_logits + i_row * stride + o_V, mask=m_V, other=float("-inf"))
            amount_V = (m_V & (key(logit_V) == tl.load(p_key + i_row))).to(tl.int64)
        sum_V = before + tl.cumsum(amount_V, 0)
        num_passed = tl.sum((m_V & (sum_V <= target)).to(tl.int64))
        tl.store(p_token + i_row, i_chunk * BLOCK_V + num_passed)
