"""Results about constrained texts, until the engine takes them."""

import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Next:
    """What may come next in a text, or why nothing may."""

    key: int
    allowed: bytes | None
    """One bit per token, the lowest of a byte first; None if the text cannot go on."""
    reason: str = ""
    """In that case, a name of `loramux.v1.ErrorReason` without its prefix."""
    why: str = ""
    seconds: float | None = None
    """Time spent compiling the form; None if it was compiled already."""
    forced: Sequence[int] = ()
    """Tokens of the only possible continuation; other tokens may spell the same text."""
    supports_drafts: bool = False
    """Whether masks for a draft can be computed in time."""


@dataclass(frozen=True, slots=True)
class DraftMasks:
    """What may follow each token of a text's draft."""

    key: int
    masks: Sequence[bytes]
    """One mask as in `Next.allowed` per draft token; fewer if one is not allowed or time is
    short."""


class Results:
    """Thread-safe list of results: one thread adds, another takes."""

    def __init__(self, wake: Callable[[], None]) -> None:
        """Start empty.

        Args:
            wake: Called from the adding thread when there is something to `take`.
        """
        self._wake = wake
        self._found: list[Next | DraftMasks] = []
        self._changed = threading.Condition()

    def __bool__(self) -> bool:
        return bool(self._found)

    def add(self, found: Next | DraftMasks) -> None:
        """Add a result."""
        with self._changed:
            self._found.append(found)
            self._changed.notify()
        self._wake()

    def take(
        self, wanted: Collection[int], seconds: float, drafted: Collection[int]
    ) -> list[Next | DraftMasks]:
        """Return the results since the last call, once all that is awaited is there or time is up.

        Args:
            wanted: Texts whose next mask is awaited.
            seconds: How long to wait.
            drafted: Texts whose masks for the draft are awaited.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._has(wanted, drafted), seconds)
            found, self._found = self._found, []
        return found

    def _has(self, wanted: Collection[int], drafted: Collection[int]) -> bool:
        known = [found for found in self._found if isinstance(found, Next)]
        done = {found.key for found in self._found if isinstance(found, DraftMasks)}
        # A text that cannot go on gets no answer about its draft.
        done |= {found.key for found in known if found.allowed is None}
        return {found.key for found in known}.issuperset(wanted) and done.issuperset(drafted)
