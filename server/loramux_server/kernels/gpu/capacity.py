"""Padded capacity of a step on a device: steps with equal capacity use the same addresses."""

from collections.abc import Sequence
from dataclasses import dataclass

from loramux_server.kernels.gpu.tiles import PREFILL_TILE
from loramux_server.kernels.step_input import StepInput

_DECODE_SIZES = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128)
"""Decode batches are padded to one of these, or to a multiple of the last."""
_PREFILL_SIZES = (
    16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1280, 1536, 1792, 2048,
)  # fmt: skip
"""Batches with prompts are padded to one of these: padding costs less than eager launches."""


@dataclass(frozen=True, slots=True)
class StepCapacity:
    """Capacity of a step's arrays. Steps with equal capacity share memory."""

    tokens: int
    requests: int
    rows: int
    """Tokens whose logits are needed."""
    width: int
    """Width of the block tables, in blocks."""
    tiles: int
    queries: int
    """Query tiles of attention."""
    num_adjustments: int = 0
    """Entries of the logit adjustments."""

    @staticmethod
    def of(given: StepInput, num_tiles: int, num_queries: int) -> "StepCapacity":
        """Return the exact capacity for a step that shares no memory with others.

        Args:
            given: The step.
            num_tiles: Its tiles.
            num_queries: Its query tiles.
        """
        num_requests, num_blocks = given.attention.table_BM.shape
        return StepCapacity(
            len(given.token_T), num_requests, len(given.sampled_R), num_blocks, num_tiles,
            num_queries, _num_adjustments(given),
        )  # fmt: skip

    @staticmethod
    def padded(
        given: StepInput, num_tiles: int, num_queries: int, query_tile: int
    ) -> "StepCapacity | None":
        """Return the padded capacity that similar steps share; None if the step is too large.

        Args:
            given: The step.
            num_tiles: Its tiles.
            num_queries: Its query tiles.
            query_tile: Tokens of a query tile.
        """
        num_tokens = len(given.token_T)
        num_requests, num_blocks = given.attention.table_BM.shape
        width, num_adjustments = (
            _width(num_blocks),
            _width(_num_adjustments(given)) if _num_adjustments(given) else 0,
        )
        if num_tokens == num_requests:
            tokens = padded_decode_size(num_tokens)
            return StepCapacity(tokens, tokens, tokens, width, tokens, 0, num_adjustments)
        if num_tokens > _PREFILL_SIZES[-1]:
            return None
        tokens, requests = _fitting(num_tokens, _PREFILL_SIZES), _power_of_4(num_requests)
        # With speculative drafts a request has several rows.
        rows = min(tokens, max(requests, _power_of_4(len(given.sampled_R))))
        # Each request may add one partial tile.
        tiles = tokens // PREFILL_TILE + requests + 1
        queries = tokens // query_tile + requests
        if num_tiles > tiles or num_queries > queries:
            return None
        return StepCapacity(tokens, requests, rows, width, tiles, queries, num_adjustments)


def padded_decode_size(num_tokens: int) -> int:
    """Return the number of tokens to which a decode batch is padded."""
    return _fitting(num_tokens, _DECODE_SIZES)


def _num_adjustments(given: StepInput) -> int:
    """Return the number of logit adjustment entries."""
    return 0 if given.adjustments is None else len(given.adjustments.row_E)


def _fitting(number: int, sizes: Sequence[int]) -> int:
    """Return the least of `sizes` that is at least `number`, else a multiple of the last one."""
    fitting = (size for size in sizes if size >= number)
    return next(fitting, -(-number // sizes[-1]) * sizes[-1])


def _power_of_4(number: int) -> int:
    """Return the least power of four, at least 4, that is not below `number`."""
    power = 4
    while power < number:
        power *= 4
    return power


def _width(num_blocks: int) -> int:
    """Return 64 times a power of four, at least `num_blocks`: few shapes for any context length."""
    width = 64
    while width < num_blocks:
        width *= 4
    return width


def power(number: int) -> int:
    """Return the least power of two that is not below `number`."""
    return 1 << (number - 1).bit_length()
