"""The adapters of a request: none, one, or a mix of several."""

import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import msgspec

from loramux.errors import FailedPreconditionError
from loramux.v1 import generation_pb2
from loramux_adapters.errors import shown
from loramux_adapters.peft_config import MAX_RANK
from loramux_server.access.caller import caller
from loramux_server.field_errors import invalid
from loramux_server.lora.mix import NOT_MIXABLE, mixed
from loramux_server.services.adapter_fields import COMBINATIONS
from loramux_server.services.adapters.descriptions import identity_of
from loramux_server.services.tasks import check_continues
from loramux_server.statuses import Statuses
from loramux_server.store.record import AdapterRecord
from loramux_server.store.registry import Registry
from loramux_server.wire.adapter_source import AdapterSource, Combination


@dataclass(frozen=True, slots=True)
class ResolvedAdapters:
    """A request's adapters, each as the version that it keeps until it ends."""

    records: list[AdapterRecord] = field(default_factory=list)
    """In the order of the request."""
    source: AdapterSource | None = None
    """What the engine loads; None for the base model, also if all weights are 0."""
    is_mix: bool = False
    leading: AdapterSource | None = None
    """The adapter with the largest weight, whose chat template and defaults are used."""
    label: str = ""
    """Full name of that adapter, to which the request is attributed; empty for the base model."""

    @property
    def identity(self) -> generation_pb2.AdapterIdentity | None:
        """The adapter; None if there is none or a mix."""
        return None if self.is_mix or not self.records else identity_of(self.records[0])

    @property
    def vocab_size(self) -> int:
        """Vocabulary size with the adapters; 0 if it is the base's."""
        return max((record.vocab_size for record in self.records), default=0)

    @property
    def identities(self) -> list[generation_pb2.AdapterIdentity]:
        """All adapters."""
        return [identity_of(record) for record in self.records]


@dataclass(frozen=True, slots=True)
class _AdapterRef:
    """An adapter that a request names."""

    reference: str
    field: str
    weight: float


@contextmanager
def resolve_adapters(
    request: generation_pb2.GenerateRequest, registry: Registry, statuses: Statuses
) -> Iterator[ResolvedAdapters]:
    """Resolve each adapter of a checked request once, and hold a lease on it during the block.

    Raises:
        NotFoundError: A reference does not resolve.
        InvalidArgumentError: Two resolve to the same version.
        FailedPreconditionError: The adapters cannot be mixed or scaled as asked, or do not continue
            text.
    """
    refs = _adapter_refs(request)
    if not refs:
        yield ResolvedAdapters()
        return
    key = request.routing_key or secrets.token_hex(8)
    with ExitStack() as leases:
        found = [
            leases.enter_context(registry.lease(ref.reference, key=key, field=ref.field))
            for ref in refs
        ]
        records = [record for record, _ in found]
        for ref, record in zip(refs, records, strict=True):
            check_continues(record, ref.field)
        sources = [source for _, source in found]
        source = _source(refs, records, sources, request)
        for record in records:
            where = source.digest if source else record.digest
            leases.enter_context(statuses.used(record.digest, record.tenant, where))
        heaviest = max(range(len(refs)), key=lambda i: abs(refs[i].weight))
        label = records[heaviest].full_name
        yield ResolvedAdapters(records, source, bool(request.adapters), sources[heaviest], label)


def _adapter_refs(request: generation_pb2.GenerateRequest) -> list[_AdapterRef]:
    if request.adapter:
        scale = request.scale if request.HasField("scale") else 1.0
        return [_AdapterRef(request.adapter, "adapter", scale)]
    return [
        _AdapterRef(
            each.adapter, f"adapters[{i}].adapter", each.weight if each.HasField("weight") else 1.0
        )
        for i, each in enumerate(request.adapters)
    ]


def _source(
    refs: list[_AdapterRef],
    records: list[AdapterRecord],
    sources: list[AdapterSource],
    request: generation_pb2.GenerateRequest,
) -> AdapterSource | None:
    """Return what the engine loads, None if all weights are 0."""
    combination = COMBINATIONS[request.combination]
    weights = [ref.weight for ref in refs]
    if weights == [1.0]:
        return sources[0]
    for i, (ref, record) in enumerate(zip(refs, records, strict=True)):
        if record.key in (other.key for other in records[:i]):
            raise invalid(
                ref.field, ref.reference, f"each version once, but {record} is listed twice"
            )
        _check_plain(ref, record)
    if len({record.invocation for record in records}) > 1:
        raise _not_mixable(
            "adapters have different alora_invocation_tokens; adapters of a mix must have the same",
            "adapters",
        )
    ranks = [record.rank for record in records]
    if combination is Combination.LINEAR and len(set(ranks)) > 1:
        raise _not_mixable(
            "combination is COMBINATION_LINEAR, which requires equal ranks, but adapters have "
            f"ranks {', '.join(map(str, ranks))} (COMBINATION_CAT accepts any)",
            "combination",
        )
    if combination is Combination.CAT and sum(ranks) > MAX_RANK:
        raise _not_mixable(
            f"the ranks of adapters add up to {sum(ranks)}; expected at most {MAX_RANK}", "adapters"
        )
    source = mixed(sources, weights, combination)
    if source and source.parts:
        # The memory of a mix counts for the caller's tenant, whoever owns its parts.
        return msgspec.structs.replace(source, tenant=caller().tenant)
    return source


def _check_plain(ref: _AdapterRef, record: AdapterRecord) -> None:
    if record.edit_bytes or not record.rank:
        raise _not_mixable(
            f"{ref.field} {shown(ref.reference)} ({record}, method {record.method}) has more than "
            "low-rank updates, so it cannot be mixed or scaled",
            ref.field,
        )


def _not_mixable(message: str, field: str) -> FailedPreconditionError:
    return FailedPreconditionError(message, reason=NOT_MIXABLE, field=field)
