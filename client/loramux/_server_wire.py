"""Server information and load: conversion from protobuf messages, for both clients."""

import datetime

from loramux.types import QuarantineEntry, ServerInfo, ServerLoad, TierLoad
from loramux.v1 import quarantine_pb2, server_pb2

_KINDS = {
    server_pb2.BASE_MODEL_KIND_UNSPECIFIED: "decoder",
    server_pb2.BASE_MODEL_KIND_DECODER: "decoder",
    server_pb2.BASE_MODEL_KIND_ENCODER: "encoder",
    server_pb2.BASE_MODEL_KIND_SEQ2SEQ: "seq2seq",
}


def server_info(message: server_pb2.GetServerInfoResponse) -> ServerInfo:
    """Convert the description of a server."""
    base = message.base_model
    return ServerInfo(
        version=message.version,
        base_model=base.name,
        architecture=base.architecture,
        fingerprint=base.fingerprint,
        dtype=base.dtype,
        device=base.device,
        context_length=base.context_length,
        vocab_size=base.vocab_size,
        has_tokenizer=base.has_tokenizer,
        num_parameters=base.num_parameters,
        has_chat_template=base.has_chat_template,
        max_running_requests=message.max_running_requests,
        max_upload_bytes=message.max_upload_bytes,
        max_images=message.max_images,
        max_image_bytes=message.max_image_bytes,
        max_image_pixels=message.max_image_pixels,
        max_request_bytes=message.max_request_bytes,
        lineage=message.lineage,
        kind=_KINDS.get(base.kind, "unknown"),
        source_length=base.source_length,
        base_aliases=tuple(base.aliases),
    )


def quarantine_entry(message: quarantine_pb2.QuarantineEntry) -> QuarantineEntry:
    """Convert a quarantine entry."""
    return QuarantineEntry(
        key=message.key,
        adapters=tuple(message.adapters),
        cause=message.cause,
        since=message.since.ToDatetime(tzinfo=datetime.UTC),
    )


def server_load(message: server_pb2.GetServerLoadResponse) -> ServerLoad:
    """Convert the load of a server."""
    fields = {
        field.name: getattr(message, field.name)
        for field in message.DESCRIPTOR.fields
        if field.name in ServerLoad.__slots__
    }
    return ServerLoad(**fields | {"device": _tier(message.device), "host": _tier(message.host)})


def _tier(message: server_pb2.TierLoad) -> TierLoad:
    return TierLoad(
        message.adapters, message.bytes, message.capacity_bytes, message.hits, message.misses,
        message.evictions, message.reloads,
    )  # fmt: skip
