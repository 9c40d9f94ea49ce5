"""Splits the texts of one request over several calls of the server."""

import asyncio
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from typing import TypeAlias, TypeVar

from loramux.errors import LoramuxError
from loramux.gateway.answers import adapter_header
from loramux.gateway.refusal import invalid
from loramux.v1 import classification_pb2, embedding_pb2

MAX_INPUTS = 2048
"""OpenAI's limit."""
MAX_TEXTS_PER_CALL = 64
"""Most texts in one call."""
MAX_BYTES_PER_CALL = 256 << 10
"""Most bytes of text in one call, unless a single text has more."""
MIN_SECONDS = 0.001
"""Timeout of a call when no time is left: it then ends with DEADLINE_EXCEEDED."""
Text: TypeAlias = str | list[int] | tuple[str, str]
"""A text, its token ids, or a pair of texts."""
Named: TypeAlias = Callable[[int | None, str], str]
"""Index of a text, None for all of them, and its part (`text`, `text_pair`, `token_ids`; empty for
the whole text) -> its name in the caller's request, for errors."""
R = TypeVar("R", embedding_pb2.EmbedResponse, classification_pb2.ClassifyResponse)
Ask: TypeAlias = Callable[[Sequence[Text], str | None, float | None], Awaitable[R]]
"""Texts, adapter and remaining seconds -> the server's response."""


async def call_in_batches(
    inputs: Sequence[Text], adapter: str | None, seconds: float | None, ask: Ask[R], named: Named
) -> AsyncGenerator[tuple[int, R], None]:
    """Yield the server's responses for batches of `inputs`, each with its first text's index.

    Args:
        inputs: The texts.
        adapter: The adapter to use; None for the base model.
        seconds: Timeout of all calls together; None for the default of each.
        ask: Calls the server.
        named: Names a text in errors.

    Raises:
        LoramuxError: A call failed.
    """
    now = asyncio.get_running_loop().time
    end = None if seconds is None else now() + seconds
    # One call after the other: concurrent ones would crowd out other callers.
    for start, texts in batches(inputs):
        left = None if end is None else max(end - now(), MIN_SECONDS)
        try:
            response = await ask(texts, adapter, left)
        except LoramuxError as error:
            raise _theirs(error, start, named) from None
        if response.HasField("adapter"):
            # Pin the version for the remaining texts, in case the name is moved meanwhile.
            adapter = adapter_header([response.adapter])
        yield start, response


def batches(inputs: Sequence[Text]) -> Iterator[tuple[int, Sequence[Text]]]:
    """Yield batches of `inputs` that fit one call, each with the index of its first text."""
    start = size = 0
    for place, text in enumerate(inputs):
        own = _num_bytes(text)
        if place - start == MAX_TEXTS_PER_CALL or (
            place > start and size + own > MAX_BYTES_PER_CALL
        ):
            yield start, inputs[start:place]
            start, size = place, 0
        size += own
    yield start, inputs[start:]


def check_count(field: str, count: int) -> None:
    """Check the number of entries of `field`.

    Raises:
        InvalidArgumentError: There are more than MAX_INPUTS.
    """
    if count > MAX_INPUTS:
        raise invalid(field, f"{field} has {count} entries; at most {MAX_INPUTS}")


def name_in_input(place: int | None, *, is_one: bool) -> str:
    """Return the field name of the text at `place`; `is_one` if `input` is a single text."""
    return "input" if place is None or is_one else f"input[{place}]"


def is_ids(value: object) -> bool:
    """Return whether `value` is a list of token ids, which may be empty."""
    return isinstance(value, list) and all(type(token) is int for token in value)


def _num_bytes(text: Text) -> int:
    parts = [text] if isinstance(text, str) else text
    return sum(len(part.encode("utf-8", "surrogatepass")) for part in parts if type(part) is str)


def _theirs(error: LoramuxError, start: int, named: Named) -> LoramuxError:
    """Return `error` with the caller's name for its text; the call's texts begin at `start`."""
    found = re.match(r"inputs(\[(\d+)\](\.(\w+))?)?$", error.field)
    if not found:
        return error
    field = named(start + int(found[2]) if found[2] else None, found[4] or "")
    message = str(error)
    if message.startswith(error.field):
        message = field + message.removeprefix(error.field)
    return type(error)(message, reason=error.reason, field=field, retry_delay=error.retry_delay)
