"""Resolves model names: the base model, or a version of an adapter."""

from collections.abc import Sequence
from dataclasses import replace

from loramux.errors import InvalidArgumentError, NotFoundError
from loramux_adapters.errors import shown
from loramux_server.access.caller import caller
from loramux_server.access.naming import demand
from loramux_server.access.rules import Access
from loramux_server.field_errors import invalid
from loramux_server.store.reference import parse_reference


def reference_of(name: str, version: str, names: Sequence[str], prefix: str = "model_") -> str:
    """Return the full reference to the adapter that a model stands for; empty for the base model.

    Args:
        name: The caller's name of the model.
        version: A number or an alias; empty for the newest.
        names: The base model's names, the reported one first. They take precedence over adapters
            of the same name.
        prefix: Prefix of the request's fields `name` and `version`.

    Raises:
        NotFoundError: The name is malformed, is the base model's with a version, or belongs to a
            tenant that the caller must not know of.
        InvalidArgumentError: The version is malformed.
    """
    field = f"{prefix}name"
    base = names[0]
    if name in names:
        if version:
            raise _not_found(
                f"{prefix}version is {shown(version)}; the base model {name!r} has no versions",
                f"{prefix}version",
            )
        return ""
    try:
        reference = parse_reference(name, field, caller().tenant)
    except InvalidArgumentError as error:
        # An invalid name is NOT_FOUND like an unknown one.
        raise _not_found(f"{error}; the base model is called {base!r}", field) from None
    if not reference.is_bare:
        raise _not_found(
            f"{field} is {shown(name)}; expected [tenant/]name; put the version into "
            f"{prefix}version",
            field,
        )
    if version:
        reference = replace(reference, tag=version)
        try:
            parsed = parse_reference(str(reference), f"{prefix}version")
        except InvalidArgumentError:
            parsed = None
        if parsed != reference:
            raise invalid(f"{prefix}version", version, "a number from 1, an alias, or no value")
    demand(reference, field, Access.SEE, caller())
    return str(reference)


def _not_found(message: str, field: str) -> NotFoundError:
    return NotFoundError(message, reason="ADAPTER_NOT_FOUND", field=field)
