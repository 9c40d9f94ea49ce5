"""Texts of one request, which may be more than one call of the server takes."""

import asyncio
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from typing import TypeAlias, TypeVar

from loramux.errors import LoramuxError
from loramux.gateway.answers import adapter_header
from loramux.gateway.refusal import invalid
from loramux.v1 import classification_pb2, embedding_pb2

MAX_INPUTS = 2048
"""As OpenAI has it."""
AT_ONCE = 64
"""Texts of one call of the server."""
BYTES_AT_ONCE = 256 << 10
"""Bytes of their text."""
MIN_SECONDS = 0.001
"""What a call is left where nothing is: it ends as one whose time is over."""
Text: TypeAlias = str | list[int] | tuple[str, str]
"""A text, its token ids, or two texts."""
Named: TypeAlias = Callable[[int | None, str], str]
"""Place of a text, if one is meant, and the part that is meant (`text`, `text_pair`, `token_ids`;
empty for all) -> what the caller calls that."""
R = TypeVar("R", embedding_pb2.EmbedResponse, classification_pb2.ClassifyResponse)
Ask: TypeAlias = Callable[[Sequence[Text], str | None, float | None], Awaitable[R]]
"""Texts, adapter and seconds that are left -> the server's answer."""


async def in_calls(
    inputs: Sequence[Text], adapter: str | None, seconds: float | None, ask: Ask[R], named: Named
) -> AsyncGenerator[tuple[int, R], None]:
    """Yield what the server answers to `inputs`, some at once, and the place of the first of them.

    Args:
        inputs: The texts.
        adapter: What reads them; None for the base model.
        seconds: How long all may take.
        ask: Calls the server.
        named: What errors call a text.

    Raises:
        LoramuxError: A call failed.
    """
    now = asyncio.get_running_loop().time
    end = None if seconds is None else now() + seconds
    # One call after the other: many at once would take the place of others.
    for start, texts in batches(inputs):
        left = None if end is None else max(end - now(), MIN_SECONDS)
        try:
            response = await ask(texts, adapter, left)
        except LoramuxError as error:
            raise _theirs(error, start, named) from None
        if response.HasField("adapter"):
            # The other texts are read by the same, whatever the name comes to stand for.
            adapter = adapter_header([response.adapter])
        yield start, response


def batches(inputs: Sequence[Text]) -> Iterator[tuple[int, Sequence[Text]]]:
    """Yield what fits one call each, and the place of the first of them in `inputs`."""
    start = size = 0
    for place, text in enumerate(inputs):
        own = _num_bytes(text)
        if place - start == AT_ONCE or (place > start and size + own > BYTES_AT_ONCE):
            yield start, inputs[start:place]
            start, size = place, 0
        size += own
    yield start, inputs[start:]


def check_count(field: str, count: int) -> None:
    """Demand that `field` may have `count` entries.

    Raises:
        InvalidArgumentError: They are too many.
    """
    if count > MAX_INPUTS:
        raise invalid(field, f"{field} has {count} entries; at most {MAX_INPUTS}")


def name_in_input(place: int | None, *, is_one: bool) -> str:
    """Return what callers call the text at a place of `input`, which may be one text alone."""
    return "input" if place is None or is_one else f"input[{place}]"


def is_ids(value: object) -> bool:
    """Return whether `value` is a list of token ids, or one of nothing."""
    return isinstance(value, list) and all(type(token) is int for token in value)


def _num_bytes(text: Text) -> int:
    parts = [text] if isinstance(text, str) else text
    return sum(len(part.encode("utf-8", "surrogatepass")) for part in parts if type(part) is str)


def _theirs(error: LoramuxError, start: int, named: Named) -> LoramuxError:
    """Return `error` with the name of its text here; those of its call begin at `start`."""
    found = re.match(r"inputs(\[(\d+)\](\.(\w+))?)?$", error.field)
    if not found:
        return error
    field = named(start + int(found[2]) if found[2] else None, found[4] or "")
    message = str(error)
    if message.startswith(error.field):
        message = field + message.removeprefix(error.field)
    return type(error)(message, reason=error.reason, field=field, retry_delay=error.retry_delay)
