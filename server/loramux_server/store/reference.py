"""References: how people name an adapter and a version of it, in the form of container images.

`[tenant/]name[:tag][@sha256:digest]`. A tag is the number of a version, or an alias that moves. No
tag means the newest version.
"""

import re
from dataclasses import dataclass
from functools import lru_cache

from loramux_adapters import PackageError, check_adapter_name, check_name
from loramux_adapters.errors import shown
from loramux_server.field_errors import at_fault, wrong

DEFAULT_TENANT = "public"
"""Whose an adapter is that is named without a tenant."""
LATEST = "latest"
"""The tag that always means the newest version."""

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_CACHED = 4096


@dataclass(frozen=True, slots=True)
class Reference:
    """An adapter, and which version of it is meant."""

    tenant: str
    name: str
    tag: str = ""
    """A version or an alias; empty for the newest version."""
    digest: str = ""
    """`sha256:…` where only this content will do."""

    @property
    def version(self) -> int | None:
        """The version that the tag says, if it is a number."""
        return int(self.tag) if self.tag.isdecimal() else None

    @property
    def is_bare(self) -> bool:
        """Whether it names an adapter without saying which version."""
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
    """Return what `text`, which came in the request field `field`, refers to.

    Where it names no tenant, `tenant` is meant.

    Raises:
        InvalidArgumentError: It is no reference; the message says what is wrong with which part.
    """
    try:
        return _parsed(text, tenant)
    except PackageError as error:
        said = str(error)
        if shown(text) not in said:
            said = f"reference {shown(text)} is not valid: {said}"
        raise at_fault(field, f"{field}: {said}") from None


def parse_name(text: str, field: str) -> Reference:
    """Return the adapter that `text`, which came in `field`, names without any version.

    Raises:
        InvalidArgumentError: It is no `[tenant/]name`.
    """
    reference = parse_reference(text, field)
    if not reference.is_bare:
        raise wrong(field, f"is {shown(text)}; give [tenant/]name, without tag and digest")
    return reference


def check_alias(alias: str, field: str) -> None:
    """Demand that an alias may be called `alias`, which came in `field`.

    Raises:
        InvalidArgumentError: It may not.
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
        f"is {shown(alias)}; an alias is built like a name, and neither a number nor {LATEST!r}",
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
