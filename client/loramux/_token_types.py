"""What comes of making tokens of a prompt."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from loramux.types import AdapterIdentity


@dataclass(frozen=True, slots=True)
class Tokens:
    """A prompt as token ids; `len()` is how many."""

    ids: tuple[int, ...]
    pieces: tuple[bytes, ...]
    """Each token in UTF-8, maybe a part of a character; empty unless asked for."""
    context_length: int
    """The largest number of tokens of prompt and completion together."""
    adapter: "AdapterIdentity | None"
    """None for the base model alone, and for a mix."""

    def __len__(self) -> int:
        return len(self.ids)
