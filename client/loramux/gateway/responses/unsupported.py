"""Fields and values of the Responses API that are not supported."""

from collections.abc import Callable

from loramux.gateway.refusal import check_one_of, unsupported
from loramux.gateway.responses.body import LOGPROBS, ResponsesBody

_RESEND = "send the earlier items in input"
_UNSUPPORTED: dict[str, tuple[Callable[[ResponsesBody], bool], str]] = {
    "previous_response_id": (
        lambda body: body.previous_response_id is not None,
        f"responses are not stored: {_RESEND}",
    ),
    "conversation": (
        lambda body: body.conversation is not None,
        f"conversations are not stored: {_RESEND}",
    ),
    "prompt": (
        lambda body: body.prompt is not None,
        "prompts are not stored: give the text as instructions or input",
    ),
    "background": (
        lambda body: body.background,
        "background mode is not supported: leave it out",
    ),
    "truncation": (
        lambda body: body.truncation != "disabled",
        "expected 'disabled': input that exceeds the context length is refused",
    ),
}
"""Field -> whether its value is unsupported, and what to do instead."""
_INCLUDED = (
    LOGPROBS, "reasoning.encrypted_content", "message.input_image.image_url",
    "code_interpreter_call.outputs", "computer_call_output.output.image_url",
    "file_search_call.results", "web_search_call.action.sources", "web_search_call.results",
)  # fmt: skip
"""All values of OpenAI's API. Most have no effect: there are no built-in tools, and reasoning is
plain text."""


def check_supported(body: ResponsesBody) -> None:
    """Check that all values of `body` are supported.

    Raises:
        InvalidArgumentError: One is not; the error names the field.
    """
    for name, (is_wrong, why) in _UNSUPPORTED.items():
        if is_wrong(body):
            value = getattr(body, name)
            shown = "true" if value is True else f"{value!r:.100}"
            raise unsupported(name, f"{name} is {shown}; {why}")
    if body.text.verbosity not in (None, "medium"):
        raise unsupported(
            "text.verbosity",
            f"text.verbosity is {body.text.verbosity!r:.100}; expected 'medium': ask for "
            "a length in instructions",
        )
    for place, included in enumerate(body.include):
        check_one_of(f"include[{place}]", included, _INCLUDED)
