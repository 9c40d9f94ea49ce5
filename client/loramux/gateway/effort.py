"""Reasoning effort, passed to the chat template as variables."""

from loramux.gateway.refusal import check_one_of

_EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")


def effort_variables(field: str, effort: str | None) -> dict[str, object]:
    """Return the chat template variables for `effort`, which a template may ignore.

    Raises:
        InvalidArgumentError: `effort` is unknown; the error names `field`.
    """
    if effort is None:
        return {}
    check_one_of(field, effort, _EFFORTS)
    found: dict[str, object] = {"reasoning_effort": effort}
    if effort == "none":
        found["enable_thinking"] = False
    return found
