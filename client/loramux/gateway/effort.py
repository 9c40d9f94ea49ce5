"""How long a model is to reason, which chat templates are told by a variable."""

from loramux.gateway.refusal import check_one_of

_EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")


def effort_variables(field: str, effort: str | None) -> dict[str, object]:
    """Return the variables for the chat template that say `effort`; a template may know none.

    Raises:
        InvalidArgumentError: There is no such effort; the error names `field`.
    """
    if effort is None:
        return {}
    check_one_of(field, effort, _EFFORTS)
    found: dict[str, object] = {"reasoning_effort": effort}
    if effort == "none":
        found["enable_thinking"] = False
    return found
