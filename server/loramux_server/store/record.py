"""What is known of one version of an adapter."""

import datetime
from dataclasses import dataclass, replace
from pathlib import Path

from loramux_adapters.head import Task
from loramux_server.store.reference import full_name
from loramux_server.wire.adapter_source import AdapterSource

UPLOAD = "upload"
DIRECTORY = "directory"
IMPORT = "import"


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterRecord:
    """One version of an adapter; its content never changes."""

    tenant: str
    name: str
    version: int = 0
    """Its number, from 1; 0 until it is registered."""
    digest: str
    seal: str = ""
    """What its bytes have besides (`loramux_server.hashes`); empty where nobody found out yet."""
    size_bytes: int
    rank: int
    num_bytes: int
    item_bytes: int
    edit_bytes: int
    """Of `num_bytes`, what is beside A and B."""
    vocab_size: int = 0
    """Tokens that the base has with it; 0 if as many as ever."""
    virtual_tokens: int
    """Positions before every prompt that are the adapter's."""
    has_cache: bool
    """Whether it brings keys and values for them."""
    task: str
    """What it does, as PEFT's `task_type` calls that; empty where it continues text."""
    method: str
    """What trained it, as PEFT calls that."""
    invocation: tuple[int, ...]
    """Tokens of a prompt from which on it is active; empty where it always is."""
    target_modules: tuple[str, ...]
    base_model: str
    other_base: str = ""
    """Why it seems to be made for another base model; empty if nothing says so."""
    source: str
    """UPLOAD, DIRECTORY or IMPORT."""
    stamp: str = ""
    """State of the files of the directory; empty where it came in another way."""
    origin: str = ""
    """URI that it was imported from; empty where it was not."""
    created_at: datetime.datetime
    is_pinned: bool = False
    """Whether it is to stay on the device."""
    expires_at: datetime.datetime | None = None
    """When it is taken away, by the wall clock; None if only a call does that."""

    @property
    def is_provided(self) -> bool:
        """Whether the directory provides it, so that callers can only read it."""
        return self.source == DIRECTORY

    @property
    def adapter(self) -> tuple[str, str]:
        """The tenant and the name, which its versions share."""
        return self.tenant, self.name

    @property
    def key(self) -> tuple[str, str, int]:
        """What no other version has."""
        return self.tenant, self.name, self.version

    @property
    def full_name(self) -> str:
        """The shortest reference to the adapter."""
        return full_name(self.tenant, self.name)

    def __str__(self) -> str:
        return f"{self.full_name}:{self.version}"


def directory_record(record: AdapterRecord, stamp: str) -> AdapterRecord:
    """Return `record` as it is kept for files of the directory in the state `stamp`."""
    return replace(record, source=DIRECTORY, stamp=stamp)


def source_of(record: AdapterRecord, path: Path) -> AdapterSource:
    """Return what the engine needs to load `record`, whose bytes are at `path`."""
    return AdapterSource(
        record.digest,
        str(path),
        record.rank,
        record.num_bytes,
        record.item_bytes,
        record.edit_bytes,
        record.vocab_size,
        record.tenant,
        record.invocation,
        virtual_tokens=record.virtual_tokens,
        has_cache=record.has_cache,
        task=Task(record.task) if record.task in set(Task) else None,
        seal=record.seal,
    )
