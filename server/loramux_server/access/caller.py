"""Who makes a call. The gate finds out before any handler runs; nothing else may."""

import enum
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from loramux_server.store.reference import DEFAULT_TENANT


class Permission(enum.Enum):
    """What a call takes."""

    NONE = enum.auto()
    """Nothing: not even a key."""
    VIEW = enum.auto()
    """See what there is."""
    GENERATE = enum.auto()
    """Let the model run."""
    PUBLISH = enum.auto()
    """Bring adapters, read their bytes, move their aliases, take them away."""
    ADMINISTER = enum.auto()
    """Decide about what all tenants share."""


class Role(enum.StrEnum):
    """What a caller is trusted with; each may do what the one before may, too."""

    VIEWER = "viewer"
    USER = "user"
    PUBLISHER = "publisher"
    ADMIN = "admin"
    """Of the server as a whole: all tenants are its own."""


_GRANTED = {
    Role.VIEWER: Permission.VIEW,
    Role.USER: Permission.GENERATE,
    Role.PUBLISHER: Permission.PUBLISH,
    Role.ADMIN: Permission.ADMINISTER,
}


@dataclass(frozen=True, slots=True)
class Caller:
    """Who makes a call."""

    tenant: str
    """Whose names it means where it says none."""
    role: Role
    key_id: str = ""
    """Which key it showed; empty if none."""

    def may(self, permission: Permission) -> bool:
        """Return whether its role includes `permission`."""
        return permission.value <= _GRANTED[self.role].value

    def sees(self, tenant: str) -> bool:
        """Return whether it may know what `tenant` has."""
        return tenant == DEFAULT_TENANT or self.owns(tenant)

    def owns(self, tenant: str) -> bool:
        """Return whether it may change what `tenant` has, as far as its role goes."""
        return tenant == self.tenant or self.role is Role.ADMIN


LOCAL_ADMIN = Caller(DEFAULT_TENANT, Role.ADMIN)
"""Whoever calls a server that has no keys."""

_caller: ContextVar[Caller] = ContextVar("caller")


def caller() -> Caller:
    """Return who makes the call that is being handled.

    Raises:
        LookupError: No call is: nothing is allowed by default.
    """
    return _caller.get()


def enter(who: Caller) -> None:
    """Let `who` be the caller in this task from now on, and in what it starts."""
    _caller.set(who)


@contextmanager
def acting(who: Caller) -> Iterator[None]:
    """Let `who` be the caller for as long as the block runs."""
    token = _caller.set(who)
    try:
        yield
    finally:
        _caller.reset(token)
