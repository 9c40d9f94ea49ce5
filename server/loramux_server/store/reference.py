"""References to an adapter and a version of it, in the syntax of container images.

`[tenant/]name[:tag][@sha256:digest]`. A tag is a version number, `latest`, or an alias. No tag
means the newest version.
"""

import re
from dataclasses import dataclass
from functools import lru_cache

from loramux_adapters import PackageError, check_adapter_name, check_name
from loramux_adapters.errors import shown
from loramux_server.field_errors import at_fault, wrong

DEFAULT_TENANT = "public"
"""The tenant of names without one; visible to all tenants."""
LATEST = "latest"
"""The tag that always means the newest version."""

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_CACHED = 4096


@dataclass(frozen=True, slots=True)
class Reference:
    """An adapter, and which version of it."""

    tenant: str
    name: str
    tag: str = ""
    """A version number or an alias; empty for the newest version."""
    digest: str = ""
    """`sha256:…` if the content is given; empty for any."""

    @property
    def version(self) -> int | None:
        """The tag as a version number; None if it is not one."""
        return int(self.tag) if self.tag.isdecimal() else None

    @property
    def is_bare(self) -> bool:
        """Whether it has neither tag nor digest."""
        return not (self.tag or self.digest)

    def __str__(self) -> str:
        return (
            full_name(self.tenant, self.name)
            + (f":{self.tag}" if self.tag else "")
            + (f"@{self.digest}" if self.digest else "")
        )


def full_name(tenant: str, name: str) -> str:
    """Return the shortest reference to the adapter."""
    return name if tenant == DEFAULT_TENANT else f"{tenant}/{name}"


@lru_cache(_CACHED)
def parse_reference(text: str, field: str, tenant: str = DEFAULT_TENANT) -> Reference:
    """Return `text`, of the request field `field`, as a reference; `tenant` is the default tenant.

    Raises:
        InvalidArgumentError: It is not valid; the message says which part is wrong.
    """
    try:
        return _parsed(text, tenant)
    except PackageError as error:
        said = str(error)
        if shown(text) not in said:
            said = f"reference {shown(text)} is not valid: {said}"
        raise at_fault(field, f"{field}: {said}") from None


def parse_name(text: str, field: str) -> Reference:
    """Return `text`, of the request field `field`, as a reference without tag and digest.

    Raises:
        InvalidArgumentError: It is not `[tenant/]name`.
    """
    reference = parse_reference(text, field)
    if not reference.is_bare:
        raise wrong(field, f"is {shown(text)}; expected [tenant/]name, without tag and digest")
    return reference


def check_alias(alias: str, field: str) -> None:
    """Demand that `alias`, of the request field `field`, is a valid alias.

    Raises:
        InvalidArgumentError: It is not.
    """
    try:
        check_adapter_name(alias)
    except PackageError:
        pass
    else:
        if not alias.isdecimal() and alias != LATEST:
            return
    raise wrong(
        field,
        f"is {shown(alias)}; expected an alias: like a name, but not a number and not {LATEST!r}",
    )


def _parsed(text: str, default_tenant: str) -> Reference:
    rest, at, digest = text.partition("@")
    if at and not _DIGEST.fullmatch(digest):
        raise PackageError(
            f"digest {shown(digest)} is not 'sha256:' and 64 lower-case hexadecimal digits",
            "INVALID_FIELD",
        )
    tenant, slash, named = rest.rpartition("/")
    name, colon, tag = named.partition(":")
    parts = (("tenant name", tenant, slash), ("adapter name", name, True), ("tag", tag, colon))
    for what, part, is_there in parts:
        if is_there:
            check_name(part, what)
    if tag.isdecimal() and tag != str(int(tag) or ""):
        raise PackageError(
            f"version {shown(tag)} is not a number from 1 without leading zeros", "INVALID_FIELD"
        )
    return Reference(tenant if slash else default_tenant, name, tag, digest)
