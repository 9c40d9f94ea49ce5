"""The one exception of this package: something about an adapter that its owner can fix."""

from typing import Literal

Reason = Literal[
    "INVALID_FIELD",
    "INVALID_ADAPTER_FILE",
    "INVALID_ADAPTER_CONFIG",
    "UNSUPPORTED_ADAPTER_FEATURE",
    "ADAPTER_BASE_MISMATCH",
    "ADAPTER_NOT_FINITE",
    "ADAPTER_TOO_LARGE",
    "ADAPTER_NOT_MIXABLE",
    "SIGNATURE_REQUIRED",
]


class PackageError(ValueError):
    """Raised when an adapter cannot be packed or served as it is.

    Attributes:
        reason: The stable cause, a name of `loramux.v1.ErrorReason` without its prefix.
    """

    def __init__(self, message: str, reason: Reason = "INVALID_ADAPTER_FILE") -> None:
        super().__init__(message)
        self.reason: Reason = reason


def shown(value: object, limit: int = 80) -> str:
    """Return `value` escaped and shortened for an error message."""
    text = ascii(value)
    return text if len(text) <= limit else f"{text[:limit]}… ({len(text)} characters)"
