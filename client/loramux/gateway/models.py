"""What can be named as `model`: the base, and adapters that continue, embed or label texts."""

from loramux.types import Adapter, ServerInfo

Object = dict[str, object]


def reported(name: str, server: ServerInfo) -> str:
    """Return `name` of a model, or the one that is reported of the base where it means that."""
    return server.base_model if name in server.base_aliases else name


def base_model(server: ServerInfo, name: str = "") -> Object:
    """Return the object for the base model as `name`; nobody knows when that was made."""
    return {
        "id": name or server.base_model,
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
    bases = [base_model(server, name) for name in _base_names(server)]
    return {"object": "list", "data": [*bases, *found]}


def _name(adapter: Adapter, server: ServerInfo) -> str:
    """Return by which `model` the newest version of `adapter` is meant."""
    # A reference names the version; without, the newest one is meant, as in the list.
    in_full = f"{adapter.tenant}/{adapter.name}"
    names = (adapter.reference.rpartition(":")[0], in_full, f"{in_full}:{adapter.version}")
    return next(name for name in names if name not in _base_names(server))


def _base_names(server: ServerInfo) -> list[str]:
    return [server.base_model, *server.base_aliases]
