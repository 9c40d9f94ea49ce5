"""What those who work on a request keep of it, each in a record of its own."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from loramux_server.kernels.states import BEGINNING


@dataclass(slots=True)
class StateSlots:
    """Where what the recurrent layers know of a request is; for `StateKeeper` to change."""

    own: int = BEGINNING
    """Slot of what they know; `BEGINNING` where it has none."""
    read: int = BEGINNING
    """Slot in which that is found before its next tokens; its own, once it has run."""
    keep_at: int = 0
    """Position up to which its blocks were there when it began: others begin like that."""
    kept_name: bytes | None = None
    """Name of the last block of its output after which a state was kept."""


@dataclass(slots=True)
class Shape:
    """What may come next in a text that has a form; for `Shaping` to change."""

    allowed: bytes | None = None
    """Tokens that may come next, a bit each; None while nobody knows."""
    ahead: Sequence[bytes] = ()
    """Tokens that may come behind those of its draft, as far as that is known."""
    forced: Sequence[int] = ()
    """Tokens that its form lets come next, unless what they say is said in others."""
    foresees: bool = False
    """Whether it is found out in time what its form lets come behind a draft."""

    def behind(self, num_drafted: int) -> bytes | None:
        """Return which tokens may come behind so many of its draft; None while nobody knows."""
        if not num_drafted:
            return self.allowed
        return self.ahead[num_drafted - 1] if num_drafted <= len(self.ahead) else None


@dataclass(slots=True)
class Gathered:
    """What was read of a request so far; for `Readings` to change."""

    numbers: list[bytes] = field(default_factory=list)
    """What its tokens gave that were read, float32: of each, or of a mean one sum, float64."""
    prompt_logprobs: list[bytes] = field(default_factory=list)
    """What `kernels.prompt_logprobs` told of its prompt, in order."""
