"""Messages that describe adapters."""

from loramux.v1 import adapters_pb2, aliases_pb2, generation_pb2
from loramux_server.access.caller import caller
from loramux_server.services.tasks import task_on
from loramux_server.statuses import Statuses
from loramux_server.store.alias import Split
from loramux_server.store.record import DIRECTORY, IMPORT, UPLOAD, AdapterRecord
from loramux_server.store.registry import Registry
from loramux_server.wire.model_info import ModelInfo

SOURCES = {
    UPLOAD: adapters_pb2.ADAPTER_SOURCE_UPLOAD,
    DIRECTORY: adapters_pb2.ADAPTER_SOURCE_DIRECTORY,
    IMPORT: adapters_pb2.ADAPTER_SOURCE_IMPORT,
}
_TIERS = {
    "stored": adapters_pb2.ADAPTER_TIER_STORED,
    "host": adapters_pb2.ADAPTER_TIER_HOST,
    "device": adapters_pb2.ADAPTER_TIER_DEVICE,
}


class Descriptions:
    """Describes versions and their current state to the caller."""

    def __init__(self, registry: Registry, statuses: Statuses, model: ModelInfo) -> None:
        self._registry = registry
        self._statuses = statuses
        self._model = model

    def tier_of(self, record: AdapterRecord) -> adapters_pb2.AdapterTier.ValueType:
        """Return the fastest tier that holds the weights of a version."""
        return _TIERS[self._statuses.of(record.digest).tier]

    def of(self, record: AdapterRecord) -> adapters_pb2.Adapter:
        """Return the message for a version."""
        status = self._statuses.of(record.digest)
        usage = self._statuses.usage_of(record.digest, record.tenant)
        message = adapters_pb2.Adapter(
            name=record.name,
            digest=record.digest,
            size_bytes=record.size_bytes,
            rank=record.rank,
            method=record.method,
            invocation_token_ids=record.invocation,
            virtual_tokens=record.virtual_tokens,
            task=task_on(record, self._model),
            target_modules=record.target_modules,
            base_model=record.base_model,
            other_base=record.other_base,
            source=SOURCES[record.source],
            tier=_TIERS[status.tier],
            tenant=record.tenant,
            version=record.version,
            reference=_reference(record, caller().tenant),
            aliases=self._registry.aliases.of_version(record),
            is_pinned=record.is_pinned,
            origin=record.origin,
            status=adapters_pb2.AdapterStatus(
                is_loading=status.is_loading,
                load_failure=status.load_failure,
                memory_bytes=record.num_bytes,
                calls=self._registry.leases.num_requests(record),
                requests=usage.requests,
                hits=usage.hits,
                loads=status.loads,
            ),
        )
        if usage.last_used:
            message.status.last_used_at.FromDatetime(usage.last_used)
        message.created_at.FromDatetime(record.created_at)
        if record.expires_at:
            message.expires_at.FromDatetime(record.expires_at)
        return message


def _reference(record: AdapterRecord, tenant: str) -> str:
    """Return how a caller of `tenant` refers to exactly this version."""
    named = f"{record.name}:{record.version}"
    return named if record.tenant == tenant else f"{record.tenant}/{named}"


def identity_of(record: AdapterRecord) -> generation_pb2.AdapterIdentity:
    """Return the message that names exactly this version."""
    return generation_pb2.AdapterIdentity(
        name=record.name, digest=record.digest, tenant=record.tenant, version=record.version
    )


def alias_of(alias: str, split: Split) -> aliases_pb2.Alias:
    """Return the message for an alias."""
    return aliases_pb2.Alias(alias=alias, split=split_of(split))


def split_of(split: Split) -> aliases_pb2.Split:
    """Return the message for the versions that an alias points at."""
    return aliases_pb2.Split(weights=dict(split.weights))
