"""Activation functions of the `adapters` library that are supported, by the library's names."""

from loramux_adapters.errors import shown
from loramux_adapters.fields import invalid

ACTIVATIONS = frozenset({
    "gelu", "gelu_new", "leakyrelu", "linear", "relu", "sigmoid", "silu", "swish", "tanh",
})  # fmt: skip


def activation(value: object, field: str) -> str:
    """Return the activation function that the config field `field` names, in lower case.

    Raises:
        PackageError: `value` is not the name of a supported one.
    """
    if not isinstance(value, str) or value.lower() not in ACTIVATIONS:
        raise invalid(field, f"is {shown(value)}; expected one of {', '.join(sorted(ACTIVATIONS))}")
    return value.lower()
