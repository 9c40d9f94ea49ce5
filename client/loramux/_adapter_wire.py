"""Values of adapters and aliases <-> wire messages; shared by both clients."""

import datetime
from collections.abc import Mapping

from loramux.errors import InvalidArgumentError
from loramux.types import Adapter, AliasMove
from loramux.v1 import adapters_pb2, aliases_pb2

PAGE_SIZE = 1000

_SOURCES = {
    adapters_pb2.ADAPTER_SOURCE_UPLOAD: "upload",
    adapters_pb2.ADAPTER_SOURCE_DIRECTORY: "directory",
}
_TIERS = {
    adapters_pb2.ADAPTER_TIER_STORED: "stored",
    adapters_pb2.ADAPTER_TIER_HOST: "host",
    adapters_pb2.ADAPTER_TIER_DEVICE: "device",
}

Weights = Mapping[int, int] | Mapping[str, int]
"""Weight by version."""


def adapter(message: adapters_pb2.Adapter) -> Adapter:
    """Return the value of a version of an adapter."""
    return Adapter(
        name=message.name,
        tenant=message.tenant,
        version=message.version,
        digest=message.digest,
        size_bytes=message.size_bytes,
        rank=message.rank,
        target_modules=tuple(message.target_modules),
        base_model=message.base_model,
        source=_SOURCES.get(message.source, ""),
        created_at=message.created_at.ToDatetime(tzinfo=datetime.UTC),
        tier=_TIERS.get(message.tier, ""),
        aliases=tuple(message.aliases),
    )


def weights(split: aliases_pb2.Split) -> dict[int, int]:
    """Return the weight of each version, in their order."""
    return dict(sorted(split.weights.items()))


def move(message: aliases_pb2.AliasMove) -> AliasMove:
    """Return the value of a move."""
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
    """Return the message that moves an alias to one version, or to several by weight.

    Raises:
        InvalidArgumentError: Not one of `version` and `split` is given, or a value does not fit.
    """
    if (version is None) == (split is None):
        raise InvalidArgumentError(
            "give either version or weights", reason="INVALID_FIELD", field="split.weights"
        )
    return aliases_pb2.SetAliasRequest(
        name=name,
        alias=alias,
        split=_split("weights", version if split is None else split),
        expected=expected_split(expected),
        moved_by=by,
    )


def expected_split(expected: int | Weights | None) -> aliases_pb2.Split | None:
    """Return the message for what an alias is expected to stand for; None for anything.

    Raises:
        InvalidArgumentError: A value does not fit.
    """
    return None if expected is None else _split("expected", expected)


def _split(field: str, value: int | Weights | None) -> aliases_pb2.Split:
    chosen = value if isinstance(value, Mapping) else {value: 1}
    try:
        return aliases_pb2.Split(weights={int(v): weight for v, weight in chosen.items()})  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(
            f"{field}: {error}", reason="INVALID_FIELD", field=field
        ) from None
