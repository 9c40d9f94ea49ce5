"""What the `adapters` library can have between linear layers, by its names."""

from loramux_adapters.errors import shown
from loramux_adapters.fields import invalid

ACTIVATIONS = frozenset({
    "gelu", "gelu_new", "leakyrelu", "linear", "relu", "sigmoid", "silu", "swish", "tanh",
})  # fmt: skip


def activation(value: object, field: str) -> str:
    """Return the activation that a `field` of a config names.

    Raises:
        PackageError: It is none that is served.
    """
    if not isinstance(value, str) or value.lower() not in ACTIVATIONS:
        raise invalid(field, f"is {shown(value)}, not one of {', '.join(sorted(ACTIVATIONS))}")
    return value.lower()
