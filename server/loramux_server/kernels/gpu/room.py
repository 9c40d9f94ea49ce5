"""How much room a step takes on a device: steps with the same room lie at the same addresses."""

from collections.abc import Sequence
from dataclasses import dataclass

from loramux_server.kernels.gpu.tiles import PREFILL_TILE
from loramux_server.kernels.step_input import StepInput

_ROOMS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128)
"""Batches of decode are filled up to one of these, or to a multiple of the last."""
_CHUNK_ROOMS = (
    16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1280, 1536, 1792, 2048,
)  # fmt: skip
"""And those with prompts to one of these: rows that nobody needs take less than launches would."""


@dataclass(frozen=True, slots=True)
class Room:
    """How much of everything there is room for. Steps that have the same have the same memory."""

    tokens: int
    requests: int
    rows: int
    """Tokens whose logits are needed."""
    width: int
    """Blocks of a request."""
    tiles: int
    queries: int
    """Tiles of attention."""
    said: int = 0
    """Entries of what rows say of tokens."""

    @staticmethod
    def of(given: StepInput, num_tiles: int, num_queries: int) -> "Room":
        """Return the room that a step takes which stands alone.

        Args:
            given: The step.
            num_tiles: Tiles of it.
            num_queries: Tiles of attention.
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
        """Return the room for a step that others are like; None for one that stands alone.

        Args:
            given: The step.
            num_tiles: Tiles of it.
            num_queries: Tiles of attention.
            query_tile: Tokens of each of those.
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
        # Drafts have several rows of a request.
        rows = min(tokens, max(requests, _power_of_4(len(given.sampled_R))))
        # Whoever begins in the middle of a tile takes another one.
        tiles = tokens // PREFILL_TILE + requests + 1
        queries = tokens // query_tile + requests
        if num_tiles > tiles or num_queries > queries:
            return None
        return Room(tokens, requests, rows, width, tiles, queries, said)


def decode_room(num_tokens: int) -> int:
    """Return up to how many tokens a batch of decode is filled up."""
    return _fitting(num_tokens, _ROOMS)


def _said(given: StepInput) -> int:
    """Return how many entries there are of what rows say of tokens."""
    return 0 if given.adjustments is None else len(given.adjustments.row_E)


def _fitting(number: int, rooms: Sequence[int]) -> int:
    """Return the least of `rooms` for `number`, or of the multiples of the last one."""
    fitting = (room for room in rooms if room >= number)
    return next(fitting, -(-number // rooms[-1]) * rooms[-1])


def _power_of_4(number: int) -> int:
    """Return the least power of four, of which 4 is the first, that is not below `number`."""
    power = 4
    while power < number:
        power *= 4
    return power


def _width(num_blocks: int) -> int:
    """Return 64 or a power of four times it: few forms, whatever the contexts."""
    width = 64
    while width < num_blocks:
        width *= 4
    return width


def power(number: int) -> int:
    """Return the least power of two that is not below `number`."""
    return 1 << (number - 1).bit_length()
