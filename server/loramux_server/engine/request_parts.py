"""Per-request records, each changed by one component only."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from loramux_server.kernels.states import BEGINNING


@dataclass(slots=True)
class StateSlots:
    """Slots of the recurrent states of a request; changed by `StateKeeper`."""

    own: int = BEGINNING
    """Slot of its state; `BEGINNING` if it has none."""
    read: int = BEGINNING
    """Slot from which its next tokens read the state; its own, once it has run."""
    keep_at: int = 0
    """Position up to which its blocks were cached when it began; a state is kept there, too."""
    kept_name: bytes | None = None
    """Name of the last block of its output after which a state was kept."""


@dataclass(slots=True)
class Shape:
    """What may come next in structured output; changed by `StructuredOutput`."""

    allowed: bytes | None = None
    """Bit mask of tokens that may come next; None while unknown."""
    draft_masks: Sequence[bytes] = ()
    """Bit masks of tokens that may come after each draft token, as far as known."""
    forced: Sequence[int] = ()
    """The only continuation that is allowed, unless its text is tokenized in another way."""
    supports_drafts: bool = False
    """Whether the masks after draft tokens are computed in time."""

    def mask_after(self, num_drafted: int) -> bytes | None:
        """Return the mask after `num_drafted` tokens of its draft; None while unknown."""
        if not num_drafted:
            return self.allowed
        return self.draft_masks[num_drafted - 1] if num_drafted <= len(self.draft_masks) else None


@dataclass(slots=True)
class Gathered:
    """What was read of a request so far; changed by `HiddenResults`."""

    numbers: list[bytes] = field(default_factory=list)
    """Results of its tokens that were read, float32; for a mean one sum, float64."""
    prompt_logprobs: list[bytes] = field(default_factory=list)
    """Outputs of `kernels.prompt_logprobs` for its prompt, in order."""
