"""Adapters and aliases: conversion to and from protobuf messages, for both clients."""

import datetime
from collections.abc import Mapping
from typing import TypeVar

from loramux.errors import InvalidArgumentError
from loramux.types import Adapter, AdapterChange, AdapterStatus, AliasMove
from loramux.v1 import adapters_pb2, aliases_pb2

PAGE_SIZE = 1000

_SOURCES = {
    adapters_pb2.ADAPTER_SOURCE_UPLOAD: "upload",
    adapters_pb2.ADAPTER_SOURCE_DIRECTORY: "directory",
    adapters_pb2.ADAPTER_SOURCE_IMPORT: "import",
}
_TIERS = {
    adapters_pb2.ADAPTER_TIER_STORED: "stored",
    adapters_pb2.ADAPTER_TIER_HOST: "host",
    adapters_pb2.ADAPTER_TIER_DEVICE: "device",
}
_CHANGES = {
    adapters_pb2.ADAPTER_CHANGE_EXISTING: "existing",
    adapters_pb2.ADAPTER_CHANGE_REGISTERED: "registered",
    adapters_pb2.ADAPTER_CHANGE_UPDATED: "updated",
    adapters_pb2.ADAPTER_CHANGE_MOVED: "moved",
    adapters_pb2.ADAPTER_CHANGE_DELETED: "deleted",
}

N = TypeVar("N")

Weights = Mapping[int, int] | Mapping[str, int]
"""Weight by version."""


def adapter(message: adapters_pb2.Adapter) -> Adapter:
    """Convert a version of an adapter."""
    status = message.status
    return Adapter(
        name=message.name,
        tenant=message.tenant,
        version=message.version,
        digest=message.digest,
        size_bytes=message.size_bytes,
        rank=message.rank,
        method=message.method,
        invocation_token_ids=tuple(message.invocation_token_ids),
        virtual_tokens=message.virtual_tokens,
        task=message.task,
        target_modules=tuple(message.target_modules),
        base_model=message.base_model,
        other_base=message.other_base,
        source=_SOURCES.get(message.source, ""),
        created_at=message.created_at.ToDatetime(tzinfo=datetime.UTC),
        tier=_TIERS.get(message.tier, ""),
        aliases=tuple(message.aliases),
        is_pinned=message.is_pinned,
        origin=message.origin,
        expires_at=(
            message.expires_at.ToDatetime(tzinfo=datetime.UTC)
            if message.HasField("expires_at")
            else None
        ),
        reference=message.reference,
        status=AdapterStatus(
            is_loading=status.is_loading,
            load_failure=status.load_failure,
            memory_bytes=status.memory_bytes,
            calls=status.calls,
            requests=status.requests,
            hits=status.hits,
            loads=status.loads,
            last_used_at=(
                status.last_used_at.ToDatetime(tzinfo=datetime.UTC)
                if status.HasField("last_used_at")
                else None
            ),
        ),
    )


def change(message: adapters_pb2.WatchAdaptersResponse) -> AdapterChange:
    """Convert a change; a newer server may send kinds that are unknown here, which become empty."""
    return AdapterChange(_CHANGES.get(message.change, ""), adapter(message.adapter))


def list_request(
    token: str, *, all_versions: bool, tenant: str, name_prefix: str, source: str, tier: str
) -> adapters_pb2.ListAdaptersRequest:
    """Return the request for one page of a list.

    Raises:
        InvalidArgumentError: The source or tier is unknown.
    """
    return adapters_pb2.ListAdaptersRequest(
        page_size=PAGE_SIZE,
        page_token=token,
        all_versions=all_versions,
        tenant=tenant,
        name_prefix=name_prefix,
        source=_number(_SOURCES, "source", source) or adapters_pb2.ADAPTER_SOURCE_UNSPECIFIED,
        tier=_number(_TIERS, "tier", tier) or adapters_pb2.ADAPTER_TIER_UNSPECIFIED,
    )


def import_request(
    name: str, uri: str, *, must_not_exist: bool, ttl: datetime.timedelta | None
) -> adapters_pb2.ImportAdapterRequest:
    """Return the request to import an adapter."""
    request = adapters_pb2.ImportAdapterRequest(name=name, uri=uri, must_not_exist=must_not_exist)
    if ttl is not None:
        request.ttl.FromTimedelta(ttl)
    return request


def ttl_request(
    reference: str, ttl: datetime.timedelta | None
) -> adapters_pb2.SetAdapterTtlRequest:
    """Return the request to set a version's time to live; None removes it."""
    request = adapters_pb2.SetAdapterTtlRequest(name=reference)
    if ttl is not None:
        request.ttl.FromTimedelta(ttl)
    return request


def weights(split: aliases_pb2.Split) -> dict[int, int]:
    """Return the weight of each version, sorted by version."""
    return dict(sorted(split.weights.items()))


def move(message: aliases_pb2.AliasMove) -> AliasMove:
    """Convert a change of an alias."""
    return AliasMove(
        before=weights(message.before),
        after=weights(message.after),
        moved_at=message.moved_at.ToDatetime(tzinfo=datetime.UTC),
        moved_by=message.moved_by,
    )


def set_alias_request(
    name: str,
    alias: str,
    version: int | None,
    split: Weights | None,
    expected: int | Weights | None,
    by: str,
) -> aliases_pb2.SetAliasRequest:
    """Return the request to point an alias to one version, or to several by weight.

    Raises:
        InvalidArgumentError: Both or none of `version` and `split` are given, or a value does not
            fit its field.
    """
    if (version is None) == (split is None):
        raise InvalidArgumentError(
            "expected exactly one of version and weights",
            reason="INVALID_FIELD",
            field="split.weights",
        )
    return aliases_pb2.SetAliasRequest(
        name=name,
        alias=alias,
        split=_split("weights", version if split is None else split),
        expected=expected_split(expected),
        moved_by=by,
    )


def expected_split(expected: int | Weights | None) -> aliases_pb2.Split | None:
    """Return the expected target of an alias as a message; None for any.

    Raises:
        InvalidArgumentError: A value does not fit its field.
    """
    return None if expected is None else _split("expected", expected)


def _number(names: Mapping[N, str], field: str, name: str) -> N | None:
    """Return the enum number of `name`; None if it is empty, which means all."""
    if not name:
        return None
    for number, known in names.items():
        if known == name:
            return number
    raise InvalidArgumentError(
        f"{field} is {name!r}; expected one of {', '.join(names.values())}",
        reason="INVALID_FIELD",
        field=field,
    )


def _split(field: str, value: int | Weights | None) -> aliases_pb2.Split:
    chosen = value if isinstance(value, Mapping) else {value: 1}
    try:
        return aliases_pb2.Split(weights={int(v): weight for v, weight in chosen.items()})  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(
            f"{field}: {error}", reason="INVALID_FIELD", field=field
        ) from None
