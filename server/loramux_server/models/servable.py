"""Whether a model can be served, and what is said of one that cannot."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import nn

from loramux_server.models.decoder_stack import DecoderStack

UNKNOWN_WAYS = (RuntimeError, LookupError, ValueError, TypeError, AttributeError, AssertionError)
"""What is raised where a model is run in a way that it does not know."""


class Check(Protocol):
    """Compares what is served with the model's own; see `SelfCheck`."""

    @property
    def tolerance(self) -> float:
        """The largest difference that rounding explains."""

    def difference(self, stack: DecoderStack | None) -> float:
        """Return how far the served results are from the model's own, relative to their spread."""

    def is_invariant(self, stack: DecoderStack | None) -> bool:
        """Return whether results are the same to the last bit however the work is cut up."""

    def move(self, device: torch.device) -> None:
        """Bring what is compared to `device`."""


class UnservableModelError(Exception):
    """The base model cannot be served; the message says why."""


def check_difference(module: nn.Module, difference: float, check: Check) -> None:
    """Demand that `difference`, which `check` has found in `module`, may be rounding."""
    if not difference <= check.tolerance:  # so that NaN is refused
        raise UnservableModelError(
            f"{type(module).__name__} computes something else when it is served than in its own "
            f"forward: results differ by {difference:.2g} of their spread, and at most "
            f"{check.tolerance:.2g} may be rounding"
        )


@contextmanager
def refused(module: nn.Module) -> Iterator[None]:
    """Turn what `module` raises when it is run in an unknown way into a reason not to serve it."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except UNKNOWN_WAYS as error:
        raise UnservableModelError(
            f"{type(module).__name__} does not use transformers' attention interface in the way "
            f"that is served: {type(error).__name__}: {error}"
        ) from None
