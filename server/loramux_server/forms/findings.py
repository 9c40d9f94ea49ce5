"""What was found out about texts that have a form, until the engine takes it."""

import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Next:
    """What may come next in one text, or why nothing may."""

    key: int
    allowed: bytes | None
    """A bit for each token, the lowest of a byte first; None where nothing may."""
    reason: str = ""
    """Then: a name of `loramux.v1.ErrorReason` without its prefix."""
    why: str = ""
    seconds: float | None = None
    """How long its form took to compile, if it had to be."""
    forced: Sequence[int] = ()
    """Tokens that come next unless what they say is said in others."""
    foresees: bool = False
    """Whether it is found out in time what may come behind a draft."""


@dataclass(frozen=True, slots=True)
class Ahead:
    """What may come behind a draft of one text."""

    key: int
    behind: Sequence[bytes]
    """As `Next.allowed`, behind each of its tokens; fewer where one is not, or it takes long."""


class Findings:
    """Owns them; one thread tells, another takes."""

    def __init__(self, wake: Callable[[], None]) -> None:
        """Begin without any.

        Args:
            wake: Called, from the thread that tells, when there is something to `take`.
        """
        self._wake = wake
        self._found: list[Next | Ahead] = []
        self._changed = threading.Condition()

    def __bool__(self) -> bool:
        return bool(self._found)

    def tell(self, found: Next | Ahead) -> None:
        """Add what was found out."""
        with self._changed:
            self._found.append(found)
            self._changed.notify()
        self._wake()

    def take(
        self, wanted: Collection[int], seconds: float, ahead: Collection[int]
    ) -> list[Next | Ahead]:
        """Return what was found out since the last time, when all is that is wanted, or time is up.

        Args:
            wanted: Texts of which it is wanted what may come next.
            seconds: How long to wait.
            ahead: Those of which it is wanted what may come behind their draft.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._has(wanted, ahead), seconds)
            found, self._found = self._found, []
        return found

    def _has(self, wanted: Collection[int], ahead: Collection[int]) -> bool:
        told = [found for found in self._found if isinstance(found, Next)]
        done = {found.key for found in self._found if isinstance(found, Ahead)}
        # Where nothing may come next, nothing comes behind a draft.
        done |= {found.key for found in told if found.allowed is None}
        return {found.key for found in told}.issuperset(wanted) and done.issuperset(ahead)
