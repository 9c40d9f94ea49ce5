"""What the engine and the process that follows forms say to each other.

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
    """With which the model ends a text."""
    cpu_seconds: float = 1.0
    """Processor time that one answer may take."""
    text_seconds: float = 5.0
    """Processor time that all answers about a text may take together."""
    memory: int = 1 << 30
    """Bytes of address space beside what the tokenizer takes."""


class Begin(Struct, frozen=True, tag=True, array_like=True):
    """Follow a form."""

    key: int
    form: Form
    tokens: list[int]
    """What was chosen already, where this was followed before in a process that has ended."""


class Advance(Struct, frozen=True, tag=True, array_like=True):
    """Tokens were chosen."""

    key: int
    tokens: list[int]


class Foresee(Struct, frozen=True, tag=True, array_like=True):
    """Find out what may come behind each token of a draft; the text stays where it is."""

    key: int
    draft: list[int]


class End(Struct, frozen=True, tag=True, array_like=True):
    """Forget; there is no answer."""

    key: int


class Prepared(Struct, frozen=True, tag=True, array_like=True):
    """The answer to `Setup`."""

    fault: str = ""
    """Why no form can be followed with this tokenizer; empty where all is well."""


class Allowed(Struct, frozen=True, tag=True, array_like=True):
    """Which tokens may come next."""

    bits: bytes
    """One for each token, the lowest of a byte first."""
    cpu_seconds: float
    """Processor time that it took to find out."""
    seconds: float | None = None
    """How long it took to compile the form, if it had to be."""
    forced: list[int] = []
    """Tokens that come next unless what they say is said in others."""


class Foreseen(Struct, frozen=True, tag=True, array_like=True):
    """Which tokens may come behind those of a draft."""

    bits: list[bytes] | None
    """As of `Allowed`, behind each of its tokens, fewer where one is not allowed, or it takes long;
    None where the form is so near its limits that no more is found out than its text needs."""
    cpu_seconds: float
    """Processor time that it took to find out."""


class Broken(Struct, frozen=True, tag=True, array_like=True):
    """The form cannot be followed, or not any further."""

    why: str


ToWorker = Begin | Advance | Foresee | End
FromWorker = Prepared | Allowed | Foreseen | Broken

encode = msgspec.msgpack.Encoder().encode
decode_setup = msgspec.msgpack.Decoder(Setup).decode
decode_to_worker = msgspec.msgpack.Decoder(ToWorker).decode
decode_from_worker = msgspec.msgpack.Decoder(FromWorker).decode
