"""Whether a model can be served, and the errors for those that cannot."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import nn

from loramux_server.models.decoder_stack import DecoderStack

UNKNOWN_WAYS = (RuntimeError, LookupError, ValueError, TypeError, AttributeError, AssertionError)
"""Raised when a model is run in a way that it does not support."""


class Check(Protocol):
    """Compares what is served with the model's own; see `SelfCheck`."""

    @property
    def tolerance(self) -> float:
        """The largest difference that rounding explains."""

    def difference(self, stack: DecoderStack | None) -> float:
        """Return how far the served results are from the model's own, relative to their spread."""

    def is_invariant(self, stack: DecoderStack | None) -> bool:
        """Return whether results are bitwise independent of how the work is batched."""

    def move(self, device: torch.device) -> None:
        """Move what is compared to `device`."""


class UnservableModelError(Exception):
    """The base model cannot be served; the message says why."""


def check_difference(module: nn.Module, difference: float, check: Check) -> None:
    """Check that `difference`, which `check` found for `module`, is within rounding.

    Raises:
        UnservableModelError: It is not.
    """
    if not difference <= check.tolerance:  # so that NaN is refused
        raise UnservableModelError(
            f"{type(module).__name__} computes different results when served than in its own "
            f"forward pass: they differ by {difference:.2g} of their spread, and rounding explains "
            f"at most {check.tolerance:.2g}"
        )


@contextmanager
def refused(module: nn.Module) -> Iterator[None]:
    """Turn exceptions of a model that is run in an unsupported way into an UnservableModelError."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except UNKNOWN_WAYS as error:
        raise UnservableModelError(
            f"{type(module).__name__} does not use transformers' attention interface in a "
            f"supported way: {type(error).__name__}: {error}"
        ) from None
