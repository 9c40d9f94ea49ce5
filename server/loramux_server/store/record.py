"""What is known of one version of an adapter."""

import datetime
from dataclasses import dataclass

from loramux_server.store.reference import DEFAULT_TENANT, full_name

UPLOAD = "upload"
DIRECTORY = "directory"


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterRecord:
    """One version of an adapter; its content never changes."""

    tenant: str = DEFAULT_TENANT
    name: str
    version: int = 0
    """Its number, from 1; 0 until it is registered."""
    digest: str
    size_bytes: int
    rank: int
    num_bytes: int
    item_bytes: int
    edit_bytes: int = 0
    """Of `num_bytes`, what is beside A and B."""
    virtual_tokens: int = 0
    """Positions before every prompt that are the adapter's."""
    has_cache: bool = False
    """Whether it brings keys and values for them."""
    method: str = "lora"
    """What trained it, as PEFT calls that."""
    target_modules: tuple[str, ...]
    base_model: str
    source: str
    """UPLOAD or DIRECTORY."""
    stamp: str = ""
    """State of the files that it was imported from; empty for an upload."""
    created_at: datetime.datetime
    is_pinned: bool = False
    """Whether it is to stay on the device."""

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
