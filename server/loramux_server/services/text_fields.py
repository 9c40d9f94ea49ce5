"""Fields that are a text or, in its place, token ids, before anything is made of them."""

from collections.abc import Mapping, Sized

from loramux_server.field_errors import at_fault, wrong
from loramux_server.wire.model_info import ModelInfo

MAX_PROMPT_BYTES = 256 << 10
"""Of a text, whatever the context; see `most_bytes`."""
MAX_LONG_PROMPT_BYTES = 3 << 20
"""Of one for a long context: it has to fit a message."""
_TOKEN_BYTES = 8
"""Of a token of a long text, amply."""


def one_of(given: Mapping[str, object]) -> str:
    """Return which field has a value, of those that say the same in different ways.

    Raises:
        InvalidArgumentError: None of them has, or several have.
    """
    fields = [name for name, value in given.items() if value]
    if len(fields) > 1:
        raise at_fault(fields[0], f"{' and '.join(fields)} are both set; set one of them")
    if fields:
        return fields[0]
    *names, last = given
    what = f"{', '.join(names)} and {last} are {'both' if len(names) == 1 else 'all'} empty"
    raise at_fault(names[0], f"{what}; set one of them")


def check_readable(field: str, instead: str, model: ModelInfo) -> None:
    """Demand that a text in `field` can become tokens.

    Raises:
        InvalidArgumentError: The base has no tokenizer; the message says what to do `instead`.
    """
    if model.tokenizer_json is None:
        raise wrong(field, f"is text, but the base model came without a tokenizer; {instead}")


def most_bytes(model: ModelInfo, most: int) -> int:
    """Return how many bytes a text may have that `model` reads, `most` at most.

    Those that would fit a long context may be more than MAX_PROMPT_BYTES.
    """
    return max(MAX_PROMPT_BYTES, min(_TOKEN_BYTES * model.context_length, most))


def check_size(field: str, text: str, most: int = MAX_PROMPT_BYTES) -> None:
    """Demand that a text in `field` has `most` bytes at most.

    Raises:
        InvalidArgumentError: It has more.
    """
    size = num_bytes(text)
    if size > most:
        raise wrong(field, f"has {size} bytes; at most {most}")


def check_text_or_tokens(
    field: str, text: str, tokens_field: str, tokens: Sized, model: ModelInfo
) -> None:
    """Demand that a text or token ids are set, or neither, and that a text can become tokens.

    Raises:
        InvalidArgumentError: Both are, or it cannot.
    """
    if text:
        one_of({field: text, tokens_field: tokens})
        check_readable(field, f"set {tokens_field}", model)
        check_size(field, text)


def num_bytes(text: str) -> int:
    """Return how long `text` is in UTF-8, whatever it holds."""
    return len(text.encode("utf-8", "surrogatepass"))
