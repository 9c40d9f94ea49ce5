"""Names in requests: what they mean for this caller, and whether they are its to use.

Services see full references only, so none of them can forget whose name it is.
"""

from collections.abc import Iterator

from google.protobuf.message import Message

from loramux.errors import InvalidArgumentError, PermissionDeniedError
from loramux_server.access.caller import Caller
from loramux_server.access.rules import Access, Rule
from loramux_server.store.names import not_registered
from loramux_server.store.reference import Reference, parse_reference


def settle_name(request: Message, rule: Rule, caller: Caller) -> None:
    """Put the tenant into each adapter's name that `request` brings, unless it says one itself.

    A name that is no reference stays as it is: the service says what is wrong with it.

    Raises:
        NotFoundError: A name belongs to a tenant that the caller must not know of, whatever is
            there.
        PermissionDeniedError: The call would change what is not the caller's.
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
    """Demand that `caller` may do `access` to what the request field `field` refers to.

    Raises:
        NotFoundError: It belongs to a tenant that the caller must not know of.
        PermissionDeniedError: The call would change what is not the caller's.
    """
    tenant = reference.tenant
    if caller.sees(tenant) if access is Access.SEE else caller.owns(tenant):
        return
    if access is Access.CREATE or caller.sees(tenant):
        raise PermissionDeniedError(
            f"{field} belongs to tenant {tenant!r}, and the caller to {caller.tenant!r}",
            reason="PERMISSION_DENIED",
            field=field,
        )
    raise not_registered(reference, field)


def named(message: Message, path: str, shown: str = "") -> Iterator[tuple[Message, str, str]]:
    """Yield each message in which `path` ends, the name of the field there, and the path taken."""
    step, _, rest = path.partition(".")
    if not rest:
        yield message, step, shown + step
    elif step.endswith("[]"):
        step = step.removesuffix("[]")
        for i, each in enumerate(getattr(message, step)):
            yield from named(each, rest, f"{shown}{step}[{i}].")
    elif message.HasField(step):
        yield from named(getattr(message, step), rest, f"{shown}{step}.")
