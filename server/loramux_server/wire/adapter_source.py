"""Which adapter a request uses, and where its bytes are."""

import enum

import msgspec
from msgspec import Struct

from loramux_adapters.head import Task
from loramux_server.wire.weight_format import Resting


class Combination(enum.StrEnum):
    """How the parts of a mix become one adapter, as `add_weighted_adapter` of PEFT defines it."""

    CAT = "cat"
    """Changes add up, and so do ranks."""
    LINEAR = "linear"
    """Factors add up; the ranks are equal."""


class Part(Struct, frozen=True):
    """One adapter of a mix."""

    digest: str
    path: str
    weight: float
    seal: str = ""


class AdapterSource(Struct, frozen=True):
    """One adapter version, or a mix of several: what it is and where its bytes are."""

    digest: str
    """Identity: `sha256:` and the digest of the package, or of what a mix is made of."""
    path: str
    """Empty for a mix."""
    rank: int
    """The largest rank of any module."""
    num_bytes: int
    """Bytes of its weights in memory."""
    item_bytes: int = 4
    """Bytes of one of those in A and B: less if all were saved in 16 bits."""
    edit_bytes: int = 0
    """Bytes of what it has beside A and B, which rests in float32 but for matrices in the place of
    the base's, which rest in what they were saved in."""
    vocab_size: int = 0
    """Tokens that the base has with it; 0 if as many as ever."""
    tenant: str = ""
    """Whose share of the device it takes: who brought the content there."""
    invocation: tuple[int, ...] = ()
    """Tokens from whose last occurrence in a prompt on it is active; empty where it always is."""
    parts: tuple[Part, ...] = ()
    """What a mix is made of."""
    combination: Combination = Combination.CAT
    """How."""
    virtual_tokens: int = 0
    """Positions before every prompt that are the adapter's."""
    has_cache: bool = False
    """Whether it brings keys and values for them; else it is embeddings."""
    task: Task | None = None
    """What its head reads; None where it continues text."""
    seal: str = ""
    """What its bytes have beside the digest, and can be known by sooner; empty if that is not
    known."""

    def at_rest(self, resting: Resting) -> "AdapterSource":
        """Return what it is when its weights rest in memory as `resting` says."""
        item_bytes = resting.item_bytes(self.item_bytes)
        if item_bytes == self.item_bytes:
            return self
        low_rank = (self.num_bytes - self.edit_bytes) * item_bytes // self.item_bytes
        num_bytes = low_rank + self.edit_bytes
        return msgspec.structs.replace(self, num_bytes=num_bytes, item_bytes=item_bytes)
