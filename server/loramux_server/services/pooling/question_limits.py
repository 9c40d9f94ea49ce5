"""Validation of question answering requests, and the windows of their contexts."""

from collections.abc import Sequence
from dataclasses import dataclass

from loramux.errors import InvalidArgumentError
from loramux.v1 import question_answering_pb2
from loramux_server.field_errors import invalid, wrong
from loramux_server.services.limits import check_names
from loramux_server.services.pooling.answers import Pair, Window
from loramux_server.services.pooling.input_limits import MAX_INPUTS
from loramux_server.services.text_fields import MAX_PROMPT_BYTES, num_bytes
from loramux_server.store.reference import parse_reference
from loramux_server.wire.model_info import ModelInfo

MAX_WINDOWS = 256
"""Maximum windows of a request."""
MAX_WINDOW_TOKENS = 1 << 20
"""Maximum tokens of all windows of a request."""
MAX_TOP_K = 100
MAX_ANSWER_TOKENS = 512
DEFAULT_ANSWER_TOKENS = 15
"""As in transformers' pipeline, like DEFAULT_OVERLAP."""
DEFAULT_OVERLAP = 128


@dataclass(frozen=True, slots=True)
class WindowSize:
    """How contexts are split into windows."""

    max_tokens: int
    """Maximum tokens of a window: the question and a part of its context."""
    overlap: int
    """Tokens of the context that a window shares with the one before it."""
    is_asked_for: bool
    """Whether a context may be split into several windows."""
    has_default_overlap: bool = False
    """Whether the request leaves `overlap` open."""


def check_request(request: question_answering_pb2.AnswerRequest, model: ModelInfo) -> None:
    """Check the fields of `request` against limits that do not depend on the adapter.

    Raises:
        InvalidArgumentError: One is invalid; the message names it, its value and what would be
            right.
    """
    if not request.adapter:
        raise invalid("adapter", "", "a reference: the base model has no question-answering head")
    parse_reference(request.adapter, "adapter")
    check_names(request.request_id, request.routing_key)
    if model.tokenizer_json is None:
        raise wrong("inputs", "are texts, but the base model has no tokenizer")
    if not 1 <= len(request.inputs) <= MAX_INPUTS:
        raise wrong("inputs", f"has {len(request.inputs)} entries; expected 1 to {MAX_INPUTS}")
    size = 0
    for index, each in enumerate(request.inputs):
        for name, text in (("question", each.question), ("context", each.context)):
            if not text:
                raise invalid(f"inputs[{index}].{name}", "", "a text")
            size += num_bytes(text)
    if size > MAX_PROMPT_BYTES:
        raise wrong("inputs", f"has {size} bytes of text; expected at most {MAX_PROMPT_BYTES}")
    if request.token_types and not model.takes_token_types:
        right = f"false: the base model, {model.architecture}, has no token types"
        raise invalid("token_types", True, right)
    _check_integer(request, "top_k", MAX_TOP_K)
    _check_integer(request, "max_answer_tokens", MAX_ANSWER_TOKENS)
    size_of(request, model)


def size_of(
    request: question_answering_pb2.AnswerRequest, model: ModelInfo, num_virtual: int = 0
) -> WindowSize:
    """Return the window size that `request` asks for.

    An adapter puts `num_virtual` tokens before each window.

    Raises:
        InvalidArgumentError: It is not possible.
    """
    most, is_asked_for = model.context_length - num_virtual, request.HasField("max_window_tokens")
    max_tokens = most
    if is_asked_for:
        max_tokens = request.max_window_tokens
        if not 2 <= max_tokens <= most:
            taken = f" less {num_virtual} virtual tokens of the adapter" if num_virtual else ""
            right = f"2 to {most}, the context of the model{taken}"
            raise invalid("max_window_tokens", max_tokens, right)
    overlap = min(DEFAULT_OVERLAP, max_tokens // 2)
    if request.HasField("window_overlap_tokens"):
        overlap = request.window_overlap_tokens
        if not is_asked_for:
            raise invalid("window_overlap_tokens", overlap, "none without max_window_tokens")
        if not 0 <= overlap < max_tokens:
            right = f"0 to {max_tokens - 1}, less than max_window_tokens"
            raise invalid("window_overlap_tokens", overlap, right)
    has_default = not request.HasField("window_overlap_tokens")
    return WindowSize(max_tokens, overlap, is_asked_for, has_default)


def windows_of(pairs: Sequence[Pair], size: WindowSize) -> list[list[Window]]:
    """Return the windows of each of `pairs`.

    Raises:
        InvalidArgumentError: A pair does not fit, or there are too many windows.
    """
    count = num_tokens = 0
    for index, pair in enumerate(pairs):
        field, length = f"inputs[{index}]", pair.num_others + len(pair.context)
        room = size.max_tokens - pair.num_others
        if length > size.max_tokens and not size.is_asked_for:
            raise _too_long(
                f"{field}.context",
                f"{field} has {length} tokens, {len(pair.context)} of them of the context; the "
                f"model has room for {size.max_tokens}: set max_window_tokens to read it in "
                "several windows",
            )
        if length > size.max_tokens and room <= size.overlap:
            default = ", the default" if size.has_default_overlap else ""
            raise _too_long(
                f"{field}.question",
                f"{field}.question has {pair.num_others} tokens, with those that the tokenizer "
                f"adds; that leaves {max(0, room)} of max_window_tokens, {size.max_tokens}, for "
                "the context, which needs more than window_overlap_tokens, "
                f"{size.overlap}{default}",
            )
        own = pair.num_windows(size.max_tokens, size.overlap)
        count += own
        num_tokens += length + (own - 1) * (pair.num_others + size.overlap)
    # Checked before any is built: too many would take the time and the memory of other requests.
    if count > MAX_WINDOWS:
        raise wrong("inputs", f"has {count} windows; expected at most {MAX_WINDOWS} in one request")
    if num_tokens > MAX_WINDOW_TOKENS:
        right = f"expected at most {MAX_WINDOW_TOKENS} in one request"
        raise wrong("inputs", f"has windows of {num_tokens} tokens; {right}")
    return [list(pair.windows(size.max_tokens, size.overlap)) for pair in pairs]


def _too_long(field: str, message: str) -> InvalidArgumentError:
    return InvalidArgumentError(message, reason="CONTEXT_LENGTH_EXCEEDED", field=field)


def _check_integer(request: question_answering_pb2.AnswerRequest, name: str, most: int) -> None:
    value = getattr(request, name)
    if request.HasField(name) and not 1 <= value <= most:  # type: ignore[arg-type]
        raise invalid(name, value, f"an integer from 1 to {most}")
