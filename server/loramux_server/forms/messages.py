"""Messages between the engine and the worker process.

Typed structs in MessagePack, each preceded by its length, as between frontend and engine.
"""

import msgspec
from msgspec import Struct

from loramux_server.forms.form import Form


class Setup(Struct, frozen=True):
    """What the process needs to know before the first form."""

    tokenizer_json: str
    """The base model's tokenizer in the format of the tokenizers library."""
    vocab_size: int
    end_tokens: list[int]
    """Tokens that end a text."""
    cpu_seconds: float = 1.0
    """Maximum processor time of one answer."""
    text_seconds: float = 5.0
    """Maximum processor time of all answers about one text."""
    memory: int = 1 << 30
    """Bytes of address space in addition to what the tokenizer takes."""


class Begin(Struct, frozen=True, tag=True, array_like=True):
    """Start tracking a text."""

    key: int
    form: Form
    tokens: list[int]
    """Tokens chosen so far, if a process that has ended tracked the text before."""


class Advance(Struct, frozen=True, tag=True, array_like=True):
    """Tokens were chosen."""

    key: int
    tokens: list[int]


class MaskDraft(Struct, frozen=True, tag=True, array_like=True):
    """Compute what may follow each token of a draft; the text's state does not move."""

    key: int
    draft: list[int]


class End(Struct, frozen=True, tag=True, array_like=True):
    """Stop tracking a text; there is no answer."""

    key: int


class Prepared(Struct, frozen=True, tag=True, array_like=True):
    """The answer to `Setup`."""

    fault: str = ""
    """Why this tokenizer cannot be used; empty if it can."""


class Allowed(Struct, frozen=True, tag=True, array_like=True):
    """Which tokens may come next."""

    bits: bytes
    """One bit per token, the lowest of a byte first."""
    cpu_seconds: float
    """Processor time spent on the answer."""
    seconds: float | None = None
    """Time spent compiling the form; None if it was compiled already."""
    forced: list[int] = []
    """Tokens of the only possible continuation; other tokens may spell the same text."""


class MaskedDraft(Struct, frozen=True, tag=True, array_like=True):
    """Which tokens may follow those of a draft."""

    bits: list[bytes] | None
    """A mask as in `Allowed` behind each draft token; fewer if one is not allowed or it takes too
    long. None if the form is so close to its limits that drafts are not looked at."""
    cpu_seconds: float
    """Processor time spent on the answer."""


class Broken(Struct, frozen=True, tag=True, array_like=True):
    """The form cannot be used, or the text cannot be continued."""

    why: str


ToWorker = Begin | Advance | MaskDraft | End
FromWorker = Prepared | Allowed | MaskedDraft | Broken

encode = msgspec.msgpack.Encoder().encode
decode_setup = msgspec.msgpack.Decoder(Setup).decode
decode_to_worker = msgspec.msgpack.Decoder(ToWorker).decode
decode_from_worker = msgspec.msgpack.Decoder(FromWorker).decode
