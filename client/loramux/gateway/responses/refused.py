"""What a response may not ask for, since nothing is kept or there is nothing that does it."""

from collections.abc import Callable

from loramux.gateway.refusal import unsupported
from loramux.gateway.responses.body import LOGPROBS, ResponsesBody

_KEPT = "give what was said before as items of input"
_NOTHING: dict[str, tuple[Callable[[ResponsesBody], bool], str]] = {
    "previous_response_id": (
        lambda body: body.previous_response_id is not None,
        f"no responses are kept here: {_KEPT}",
    ),
    "conversation": (
        lambda body: body.conversation is not None,
        f"no conversations are kept here: {_KEPT}",
    ),
    "prompt": (
        lambda body: body.prompt is not None,
        "no prompts are kept here: give the text as instructions or input",
    ),
    "background": (
        lambda body: body.background,
        "no responses are kept here to be fetched later: leave it out",
    ),
    "truncation": (
        lambda body: body.truncation != "disabled",
        "expected 'disabled': what does not fit the context is refused, and no item is left out",
    ),
}
"""Field -> whether it asks for what is not served, and what would be right."""
_EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
_INCLUDED = (
    LOGPROBS, "reasoning.encrypted_content", "message.input_image.image_url",
    "code_interpreter_call.outputs", "computer_call_output.output.image_url",
    "file_search_call.results", "web_search_call.action.sources", "web_search_call.results",
)  # fmt: skip
"""What OpenAI's API may include. Tools that are not served add nothing, and thoughts are plain."""


def check_served(body: ResponsesBody) -> None:
    """Demand that `body` asks for nothing that is not served.

    Raises:
        InvalidArgumentError: It does; the error names the field.
    """
    for name, (is_wrong, why) in _NOTHING.items():
        if is_wrong(body):
            value = getattr(body, name)
            shown = "true" if value is True else f"{value!r:.100}"
            raise unsupported(name, f"{name} is {shown}; {why}")
    if body.text.verbosity not in (None, "medium"):
        raise unsupported(
            "text.verbosity",
            f"text.verbosity is {body.text.verbosity!r:.100}; expected 'medium': say in "
            "instructions how long an answer is to be",
        )
    effort = body.reasoning.effort if body.reasoning else None
    if effort is not None:
        _check_one_of("reasoning.effort", effort, _EFFORTS)
    for place, included in enumerate(body.include):
        _check_one_of(f"include[{place}]", included, _INCLUDED)


def _check_one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        expected = " or ".join(map(repr, known))
        raise unsupported(name, f"{name} is {value!r:.100}; expected {expected}")
