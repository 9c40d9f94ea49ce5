"""Padded capacity of a step on a device: steps with equal capacity use the same addresses."""

from collections.abc import Sequence
from dataclasses import dataclass

from loramux_server.kernels.gpu.tiles import PREFILL_TILE
from loramux_server.kernels.step_input import StepInput

_ROOMS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128)
"""Decode batches are padded to one of these, or to a multiple of the last."""
_CHUNK_ROOMS = (
    16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1280, 1536, 1792, 2048,
)  # fmt: skip
"""Batches with prompts are padded to one of these: padding costs less than eager launches."""


@dataclass(frozen=True, slots=True)
class Room:
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
    said: int = 0
    """Entries of the logit adjustments."""

    @staticmethod
    def of(given: StepInput, num_tiles: int, num_queries: int) -> "Room":
        """Return the exact capacity for a step that shares no memory with others.

        Args:
            given: The step.
            num_tiles: Its tiles.
            num_queries: Its query tiles.
        """
        num_requests, num_blocks = given.attention.table_BM.shape
        return Room(
            len(given.token_T), num_requests, len(given.sampled_R), num_blocks, num_tiles,
            num_queries, _said(given),
        )  # fmt: skip

    @staticmethod
    def shared(
        given: StepInput, num_tiles: int, num_queries: int, query_tile: int
    ) -> "Room | None":
        """Return the padded capacity that similar steps share; None if the step is too large.

        Args:
            given: The step.
            num_tiles: Its tiles.
            num_queries: Its query tiles.
            query_tile: Tokens of a query tile.
        """
        num_tokens = len(given.token_T)
        num_requests, num_blocks = given.attention.table_BM.shape
        width, said = _width(num_blocks), _width(_said(given)) if _said(given) else 0
        if num_tokens == num_requests:
            tokens = decode_room(num_tokens)
            return Room(tokens, tokens, tokens, width, tokens, 0, said)
        if num_tokens > _CHUNK_ROOMS[-1]:
            return None
        tokens, requests = _fitting(num_tokens, _CHUNK_ROOMS), _power_of_4(num_requests)
        # With speculative drafts a request has several rows.
        rows = min(tokens, max(requests, _power_of_4(len(given.sampled_R))))
        # Each request may add one partial tile.
        tiles = tokens // PREFILL_TILE + requests + 1
        queries = tokens // query_tile + requests
        if num_tiles > tiles or num_queries > queries:
            return None
        return Room(tokens, requests, rows, width, tiles, queries, said)


def decode_room(num_tokens: int) -> int:
    """Return the number of tokens to which a decode batch is padded."""
    return _fitting(num_tokens, _ROOMS)


def _said(given: StepInput) -> int:
    """Return the number of logit adjustment entries."""
    return 0 if given.adjustments is None else len(given.adjustments.row_E)


def _fitting(number: int, rooms: Sequence[int]) -> int:
    """Return the least of `rooms` that is at least `number`, else a multiple of the last one."""
    fitting = (room for room in rooms if room >= number)
    return next(fitting, -(-number // rooms[-1]) * rooms[-1])


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
