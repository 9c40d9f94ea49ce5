"""The record of one version of an adapter."""

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
    """The BLAKE3 of its bytes (`loramux_server.hashes`); empty if not computed yet."""
    size_bytes: int
    rank: int
    num_bytes: int
    item_bytes: int
    edit_bytes: int
    """The part of `num_bytes` that is not A and B."""
    vocab_size: int = 0
    """Vocabulary size of the base with this adapter; 0 if unchanged."""
    virtual_tokens: int
    """Virtual tokens that it puts before every prompt."""
    has_cache: bool
    """Whether these are keys and values (prefix tuning), not embeddings."""
    task: str
    """PEFT's `task_type`; empty for text generation."""
    method: str
    """PEFT's `peft_type`, in lower case."""
    invocation: tuple[int, ...]
    """Invocation tokens (aLoRA), from which on it is active; empty if it always is."""
    target_modules: tuple[str, ...]
    base_model: str
    other_base: str = ""
    """Why it seems to be made for another base model; empty if nothing indicates that."""
    source: str
    """UPLOAD, DIRECTORY or IMPORT."""
    stamp: str = ""
    """Stamp of its files in the directory; empty for other sources."""
    origin: str = ""
    """URI that it was imported from; empty for other sources."""
    created_at: datetime.datetime
    is_pinned: bool = False
    """Whether it stays on the device."""
    expires_at: datetime.datetime | None = None
    """When it expires, by the wall clock; None for never."""

    @property
    def is_provided(self) -> bool:
        """Whether it comes from the directory, so that callers can only read it."""
        return self.source == DIRECTORY

    @property
    def adapter(self) -> tuple[str, str]:
        """Tenant and name."""
        return self.tenant, self.name

    @property
    def key(self) -> tuple[str, str, int]:
        """Tenant, name and version number."""
        return self.tenant, self.name, self.version

    @property
    def full_name(self) -> str:
        """The shortest reference to the adapter."""
        return full_name(self.tenant, self.name)

    def __str__(self) -> str:
        return f"{self.full_name}:{self.version}"


def directory_record(record: AdapterRecord, stamp: str) -> AdapterRecord:
    """Return `record` with the directory as its source and `stamp` as that of its files."""
    return replace(record, source=DIRECTORY, stamp=stamp)


def source_of(record: AdapterRecord, path: Path) -> AdapterSource:
    """Return what the engine needs to load `record`, whose file is at `path`."""
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
