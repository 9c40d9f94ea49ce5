"""What can be named as `model`: the base, and adapters that generate, embed or classify."""

from loramux.types import Adapter, ServerInfo

Object = dict[str, object]


def reported(name: str, server: ServerInfo) -> str:
    """Return `name`; if it is an alias of the base model, return the base model's name."""
    return server.base_model if name in server.base_aliases else name


def base_model(server: ServerInfo, name: str = "") -> Object:
    """Return the object for the base model as `name`; when that was created is unknown."""
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
    """Return the list of models, without adapters whose task no HTTP route serves.

    These are token classification and question answering.
    """
    found = [
        adapter_model(adapter, server, _name(adapter, server))
        for adapter in adapters
        if adapter.task in ("", "FEATURE_EXTRACTION", "SEQ_CLS")
    ]
    bases = [base_model(server, name) for name in _base_names(server)]
    return {"object": "list", "data": [*bases, *found]}


def _name(adapter: Adapter, server: ServerInfo) -> str:
    """Return the `model` that refers to the newest version of `adapter`, and not to the base."""
    # Without its version, a reference stands for the newest one, as does the listed adapter.
    in_full = f"{adapter.tenant}/{adapter.name}"
    names = (adapter.reference.rpartition(":")[0], in_full, f"{in_full}:{adapter.version}")
    return next(name for name in names if name not in _base_names(server))


def _base_names(server: ServerInfo) -> list[str]:
    return [server.base_model, *server.base_aliases]
