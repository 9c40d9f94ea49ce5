"""Validation of fields that hold a text or, in its place, token ids."""

from collections.abc import Mapping, Sized

from loramux_server.field_errors import at_fault, wrong
from loramux_server.wire.model_info import ModelInfo

MAX_PROMPT_BYTES = 256 << 10
"""Maximum bytes of a text, whatever the context; see `most_bytes`."""
MAX_LONG_PROMPT_BYTES = 3 << 20
"""Maximum bytes of a text for a long context: it has to fit into a message."""
_TOKEN_BYTES = 8
"""Bytes per token of a long text, generously."""


def one_of(given: Mapping[str, object]) -> str:
    """Return which one of several alternative fields is set.

    Raises:
        InvalidArgumentError: None or several are.
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
    """Check that the base model can tokenize the text in `field`.

    Raises:
        InvalidArgumentError: It has no tokenizer; the message says what to do `instead`.
    """
    if model.tokenizer_json is None:
        raise wrong(field, f"is text, but the base model has no tokenizer; {instead}")


def most_bytes(model: ModelInfo, most: int) -> int:
    """Return the maximum bytes of a text for `model`: it grows with the context, up to `most`.

    It is never less than MAX_PROMPT_BYTES.
    """
    return max(MAX_PROMPT_BYTES, min(_TOKEN_BYTES * model.context_length, most))


def check_size(field: str, text: str, most: int = MAX_PROMPT_BYTES) -> None:
    """Check that the text in `field` has at most `most` bytes.

    Raises:
        InvalidArgumentError: It has more.
    """
    size = num_bytes(text)
    if size > most:
        raise wrong(field, f"has {size} bytes; expected at most {most}")


def check_text_or_tokens(
    field: str, text: str, tokens_field: str, tokens: Sized, model: ModelInfo
) -> None:
    """Check that at most one of a text and token ids is set, and that the text can be tokenized.

    Raises:
        InvalidArgumentError: Both are, or it cannot or is too long.
    """
    if text:
        one_of({field: text, tokens_field: tokens})
        check_readable(field, f"set {tokens_field}", model)
        check_size(field, text)


def num_bytes(text: str) -> int:
    """Return the size of `text` in UTF-8, even if it has lone surrogates."""
    return len(text.encode("utf-8", "surrogatepass"))
