"""Results of tokenization."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from loramux.types import AdapterIdentity


@dataclass(frozen=True, slots=True)
class Tokens:
    """A prompt as token ids; `len()` returns their number."""

    ids: tuple[int, ...]
    pieces: tuple[bytes, ...]
    """UTF-8 bytes of each token, possibly an incomplete character; empty unless requested."""
    context_length: int
    """Maximum number of tokens of prompt and completion together."""
    adapter: "AdapterIdentity | None"
    """None for the base model alone, and for a mix."""

    def __len__(self) -> int:
        return len(self.ids)
