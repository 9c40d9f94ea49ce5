"""Names in requests: what they mean for this caller, and whether they are its to use.

Services see full references only, so none of them can forget whose name it is.
"""

from google.protobuf.message import Message

from loramux.errors import InvalidArgumentError, PermissionDeniedError
from loramux_server.access.caller import Caller
from loramux_server.access.rules import Access, Rule
from loramux_server.store.names import not_registered
from loramux_server.store.reference import Reference, parse_reference


def settle_name(request: Message, rule: Rule, caller: Caller) -> None:
    """Put the tenant into the adapter's name that `request` brings, unless it says one itself.

    A name that is no reference stays as it is: the service says what is wrong with it.

    Raises:
        NotFoundError: The name belongs to a tenant that the caller must not know of, whatever is
            there.
        PermissionDeniedError: The call would change what is not the caller's.
    """
    if not rule.field:
        return
    *way, field = rule.field.split(".")
    for step in way:
        if not request.HasField(step):
            return
        request = getattr(request, step)
    text = getattr(request, field)
    if not text:
        return
    try:
        reference = parse_reference(text, rule.field, caller.tenant)
    except InvalidArgumentError:
        return
    _demand(reference, rule, caller)
    if "/" not in text:
        setattr(request, field, str(reference))


def _demand(reference: Reference, rule: Rule, caller: Caller) -> None:
    tenant = reference.tenant
    if caller.sees(tenant) if rule.access is Access.SEE else caller.owns(tenant):
        return
    if rule.access is Access.CREATE or caller.sees(tenant):
        raise PermissionDeniedError(
            f"{rule.field} belongs to tenant {tenant!r}, and the caller to {caller.tenant!r}",
            reason="PERMISSION_DENIED",
            field=rule.field,
        )
    raise not_registered(reference, rule.field)
