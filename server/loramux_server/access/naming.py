"""Qualifying adapter names in requests with the caller's tenant, and checking access to them.

Services see full references only, so none of them can forget the tenant of a name.
"""

from collections.abc import Iterator

from google.protobuf.message import Message

from loramux.errors import InvalidArgumentError, PermissionDeniedError
from loramux_server.access.caller import Caller
from loramux_server.access.rules import Access, Rule
from loramux_server.store.names import not_registered
from loramux_server.store.reference import Reference, parse_reference


def settle_name(request: Message, rule: Rule, caller: Caller) -> None:
    """Add the caller's tenant to each adapter name in `request` that has none, in place.

    An invalid reference stays as it is: the service reports what is wrong with it.

    Raises:
        NotFoundError: A name belongs to a tenant that the caller must not see, whether the adapter
            exists or not.
        PermissionDeniedError: The call would change what the caller does not own.
    """
    for path in rule.fields:
        for message, field, shown in named(request, path):
            text = getattr(message, field)
            if not text:
                continue
            try:
                reference = parse_reference(text, shown, caller.tenant)
            except InvalidArgumentError:
                continue
            demand(reference, shown, rule.access, caller)
            if "/" not in text:
                setattr(message, field, str(reference))


def demand(reference: Reference, field: str, access: Access, caller: Caller) -> None:
    """Demand that `caller` has `access` to what the request field `field` refers to.

    Raises:
        NotFoundError: It belongs to a tenant that the caller must not see.
        PermissionDeniedError: The call would change or create what the caller does not own.
    """
    tenant = reference.tenant
    if caller.sees(tenant) if access is Access.SEE else caller.owns(tenant):
        return
    if access is Access.CREATE or caller.sees(tenant):
        raise PermissionDeniedError(
            f"{field} belongs to tenant {tenant!r}, but the caller to {caller.tenant!r}",
            reason="PERMISSION_DENIED",
            field=field,
        )
    raise not_registered(reference, field)


def named(message: Message, path: str, shown: str = "") -> Iterator[tuple[Message, str, str]]:
    """Yield the message, the name and the full path, with indices, of each field at `path`."""
    step, _, rest = path.partition(".")
    if not rest:
        yield message, step, shown + step
    elif step.endswith("[]"):
        step = step.removesuffix("[]")
        for i, each in enumerate(getattr(message, step)):
            yield from named(each, rest, f"{shown}{step}[{i}].")
    elif message.HasField(step):
        yield from named(getattr(message, step), rest, f"{shown}{step}.")
