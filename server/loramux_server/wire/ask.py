"""What the engine is asked to do."""

from msgspec import Struct

from loramux_adapters.embedding import Pooling
from loramux_server.images.messages import PlacedImage
from loramux_server.wire.adapter_source import AdapterSource
from loramux_server.wire.sampling import Sampling


class Ask(Struct, frozen=True):
    """To generate one completion, or to read one text: for the head of an adapter, or to embed it.

    A completion of no tokens is one whose prompt's log-probabilities are wanted.
    """

    prompt: list[int]
    adapter: AdapterSource | None
    """None for the base."""
    sampling: Sampling
    tenant: str = ""
    """Whose request it is: only their own requests share KV blocks with it."""
    pooling: Pooling | None = None
    """How the text is embedded, by its last token or all of them, or by its first where the base
    reads it as a whole; None where it is not."""
    prediction: list[int] = []
    """What the completion may be, for the most part: it comes sooner where it is right."""
    num_made: int = 0
    """Tokens at the end of the prompt that were made for a completion, which goes on: it was
    admitted before, and waits before others of its tenant."""
    images: list[PlacedImage] = []
    """Images in the prompt, in order."""
    second_from: int = 0
    """Position at which the second of two texts begins, if it is told; 0 where there is none."""
    num_source: int = 0
    """Tokens at the beginning of the prompt that an encoder reads; the text that is written begins
    with those behind them. 0 where the base model has no encoder."""

    @property
    def digest(self) -> str | None:
        """Identity of the adapter; None for the base."""
        return self.adapter.digest if self.adapter else None
