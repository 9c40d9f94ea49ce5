"""The caller of the current call. Only the gate sets it, before any handler runs."""

import enum
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from loramux_server.store.reference import DEFAULT_TENANT


class Permission(enum.Enum):
    """The permission that a call requires."""

    NONE = enum.auto()
    """None: no authentication either."""
    VIEW = enum.auto()
    """See what exists."""
    GENERATE = enum.auto()
    """Run the model."""
    PUBLISH = enum.auto()
    """Upload, download and delete adapters, and move their aliases."""
    ADMINISTER = enum.auto()
    """Manage what all tenants share."""


class Role(enum.StrEnum):
    """The role of a caller; each includes the one before."""

    VIEWER = "viewer"
    USER = "user"
    PUBLISHER = "publisher"
    ADMIN = "admin"
    """Administers the server as a whole: owns all tenants."""


_GRANTED = {
    Role.VIEWER: Permission.VIEW,
    Role.USER: Permission.GENERATE,
    Role.PUBLISHER: Permission.PUBLISH,
    Role.ADMIN: Permission.ADMINISTER,
}


@dataclass(frozen=True, slots=True)
class Caller:
    """The caller of an RPC."""

    tenant: str
    """The tenant of names that it gives without one."""
    role: Role
    key_id: str = ""
    """The id of its key; empty if it has none."""

    def may(self, permission: Permission) -> bool:
        """Return whether its role includes `permission`."""
        return permission.value <= _GRANTED[self.role].value

    def sees(self, tenant: str) -> bool:
        """Return whether it may know what `tenant` has."""
        return tenant == DEFAULT_TENANT or self.owns(tenant)

    def owns(self, tenant: str) -> bool:
        """Return whether it may change what `tenant` has, if its role permits the change."""
        return tenant == self.tenant or self.role is Role.ADMIN


LOCAL_ADMIN = Caller(DEFAULT_TENANT, Role.ADMIN)
"""Every caller of a server without keys."""

_caller: ContextVar[Caller] = ContextVar("caller")


def caller() -> Caller:
    """Return the caller of the call that is being handled.

    Raises:
        LookupError: No call is being handled: nothing is allowed by default.
    """
    return _caller.get()


def enter(who: Caller) -> None:
    """Make `who` the caller in this task from now on, and in tasks that it starts."""
    _caller.set(who)


@contextmanager
def acting(who: Caller) -> Iterator[None]:
    """Make `who` the caller while the block runs."""
    token = _caller.set(who)
    try:
        yield
    finally:
        _caller.reset(token)
