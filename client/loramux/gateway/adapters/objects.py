"""JSON objects for adapters, aliases and errors."""

import datetime
from collections.abc import Mapping

from starlette.responses import Response

from loramux.errors import LoramuxError
from loramux.gateway.caller import Caller
from loramux.gateway.names import Names
from loramux.gateway.refusal import headers_of, json_response, own_status_of, words_of
from loramux.types import Adapter, AliasMove

Object = dict[str, object]

_FIELDS = {"header.size_bytes": "content-length", "header.sha256": "x-content-sha256"}
"""Field of the server's requests -> HTTP header that it is made from."""


def adapter_object(adapter: Adapter) -> Object:
    """Return the object for one version of an adapter."""
    return {
        "object": "adapter",
        "name": adapter.name,
        "tenant": adapter.tenant,
        "version": adapter.version,
        "reference": adapter.reference,
        "digest": adapter.digest,
        "size_bytes": adapter.size_bytes,
        "method": adapter.method,
        "rank": adapter.rank,
        "task": adapter.task,
        "base_model": adapter.base_model,
        "source": adapter.source,
        "origin": adapter.origin,
        "created_at": _timestamp(adapter.created_at),
        "expires_at": _timestamp(adapter.expires_at),
        "aliases": list(adapter.aliases),
        "pinned": adapter.is_pinned,
        "tier": adapter.tier,
    }


def list_object(found: list[Object]) -> Object:
    """Return the list object for `found`."""
    return {"object": "list", "data": found}


def alias_object(name: str, alias: str, weights: Mapping[int, int]) -> Object:
    """Return the object for an alias; `weights` are its versions, each with its weight."""
    return {
        "object": "adapter.alias",
        "name": name,
        "alias": alias,
        "weights": weights_object(weights),
    }


def weights_object(weights: Mapping[int, int]) -> Object:
    """Return `weights` with versions as strings, as JSON requires."""
    return {str(version): weight for version, weight in weights.items()}


def move_object(move: AliasMove) -> Object:
    """Return the object for one move of an alias."""
    return {
        "object": "adapter.alias.move",
        "before": weights_object(move.before),
        "after": weights_object(move.after),
        "moved_at": _timestamp(move.moved_at),
        "moved_by": move.moved_by,
    }


def refusal(error: LoramuxError, caller: Caller, names: Names) -> Response:
    """Return the response to `caller` for `error`, in OpenAI's form.

    Unlike on other routes, an adapter's name is not called `model` here.
    """
    status, kind = own_status_of(error)
    field = _FIELDS.get(error.field, error.field.removeprefix("header."))
    message = words_of(error)
    if error.field and message.startswith(error.field):
        message = field + message.removeprefix(error.field)
    code = (error.reason or error.code.name).lower()
    body = {"error": {"message": message, "type": kind, "param": field or None, "code": code}}
    return json_response(body, headers_of(error, status, caller), status)


def _timestamp(moment: datetime.datetime | None) -> str | None:
    return None if moment is None else moment.isoformat().replace("+00:00", "Z")
