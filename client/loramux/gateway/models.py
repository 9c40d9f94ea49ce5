"""What can be named as `model`: the base, and adapters that continue, embed or label texts."""

from loramux.types import Adapter, ServerInfo

Object = dict[str, object]


def base_model(server: ServerInfo) -> Object:
    """Return the object for the base model; nobody knows when that was made."""
    return {
        "id": server.base_model,
        "object": "model",
        "created": 0,
        "owned_by": "loramux",
        "parent": None,
        "max_model_len": server.context_length,
    }


def adapter_model(adapter: Adapter, server: ServerInfo, name: str) -> Object:
    """Return the object for an adapter that the caller calls `name`."""
    return {
        "id": name,
        "object": "model",
        "created": int(adapter.created_at.timestamp()),
        "owned_by": adapter.tenant,
        "parent": server.base_model,
        "max_model_len": server.context_length - adapter.virtual_tokens,
        "version": adapter.version,
        "digest": adapter.digest,
    }


def models(server: ServerInfo, adapters: list[Adapter]) -> Object:
    """Return the list of all, without what labels tokens or answers questions, which none asks."""
    found = [
        adapter_model(adapter, server, _name(adapter, server))
        for adapter in adapters
        if adapter.task in ("", "FEATURE_EXTRACTION", "SEQ_CLS")
    ]
    return {"object": "list", "data": [base_model(server), *found]}


def _name(adapter: Adapter, server: ServerInfo) -> str:
    """Return by which `model` the newest version of `adapter` is meant."""
    # A reference names the version; without, the newest one is meant, as in the list.
    name = adapter.reference.rpartition(":")[0]
    return f"{adapter.tenant}/{adapter.name}" if name == server.base_model else name
