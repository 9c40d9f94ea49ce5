"""What is said of adapters over the wire."""

from loramux.v1 import adapters_pb2, aliases_pb2, generation_pb2
from loramux_server.store.alias import Split
from loramux_server.store.record import DIRECTORY, UPLOAD, AdapterRecord
from loramux_server.store.registry import Registry

_SOURCES = {
    UPLOAD: adapters_pb2.ADAPTER_SOURCE_UPLOAD,
    DIRECTORY: adapters_pb2.ADAPTER_SOURCE_DIRECTORY,
}
_TIERS = {
    "stored": adapters_pb2.ADAPTER_TIER_STORED,
    "host": adapters_pb2.ADAPTER_TIER_HOST,
    "device": adapters_pb2.ADAPTER_TIER_DEVICE,
}


class Descriptions:
    """Describes versions, and where their weights are."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self.tiers: dict[str, str] = {}
        """Digest -> fastest tier, as the engine reports it; what is absent is stored only."""

    def of(self, record: AdapterRecord) -> adapters_pb2.Adapter:
        """Return the message for a version."""
        message = adapters_pb2.Adapter(
            name=record.name,
            digest=record.digest,
            size_bytes=record.size_bytes,
            rank=record.rank,
            target_modules=record.target_modules,
            base_model=record.base_model,
            source=_SOURCES[record.source],
            tier=_TIERS[self.tiers.get(record.digest, "stored")],
            tenant=record.tenant,
            version=record.version,
            aliases=self._registry.aliases.of_version(record),
        )
        message.created_at.FromDatetime(record.created_at)
        return message


def identity_of(record: AdapterRecord) -> generation_pb2.AdapterIdentity:
    """Return the message that names exactly this version."""
    return generation_pb2.AdapterIdentity(
        name=record.name, digest=record.digest, tenant=record.tenant, version=record.version
    )


def alias_of(alias: str, split: Split) -> aliases_pb2.Alias:
    """Return the message for an alias."""
    return aliases_pb2.Alias(alias=alias, split=split_of(split))


def split_of(split: Split) -> aliases_pb2.Split:
    """Return the message for what an alias stands for."""
    return aliases_pb2.Split(weights=dict(split.weights))
