"""What the engine is asked to compute."""

from msgspec import Struct

from loramux_adapters.embedding import Pooling
from loramux_server.images.messages import PlacedImage
from loramux_server.wire.adapter_source import AdapterSource
from loramux_server.wire.sampling import Sampling


class Ask(Struct, frozen=True):
    """A request to generate one completion, or to read one text for an adapter's head or embedding.

    A completion of zero tokens only scores its prompt: it returns the log-probabilities.
    """

    prompt: list[int]
    adapter: AdapterSource | None
    """None for the base."""
    sampling: Sampling
    tenant: str = ""
    """Tenant of the request; KV blocks are shared within a tenant only."""
    pooling: Pooling | None = None
    """How the text is pooled into an embedding: by its last token, the mean of all, or, where the
    base has an encoder, its first; None if it is not embedded."""
    prediction: list[int] = []
    """The expected completion, for speculative decoding: what is right in it comes sooner."""
    num_generated: int = 0
    """Tokens at the end of the prompt that an earlier request generated, which this one continues.
    That one was admitted, so this one is queued before its tenant's other requests."""
    images: list[PlacedImage] = []
    """Images in the prompt, in order."""
    second_from: int = 0
    """Start of the second text of a pair, for models with token types; 0 if there is none."""
    num_source: int = 0
    """Tokens at the beginning of the prompt that are the encoder's input in an encoder-decoder; the
    decoder starts with those after them. 0 for other models."""
    cache_salt: str = ""
    """Only requests of the tenant with the same salt share KV blocks with it."""

    @property
    def digest(self) -> str | None:
        """Identity of the adapter; None for the base."""
        return self.adapter.digest if self.adapter else None
