"""Which tenants may call: those that nobody disabled.

Looked at again several times a second, as keys are, because `loramux tenants` changes it from
another process.
"""

from loramux.errors import PermissionDeniedError
from loramux_server.access.access_file import AccessFile
from loramux_server.store.disabled_tenants import DisabledTenants


class Tenants:
    """Asked on the event loop; `refresh` may run in a thread beside."""

    def __init__(self, disabled: DisabledTenants, file: AccessFile | None = None) -> None:
        """Read which tenants the catalog, or a file, says are disabled."""
        self._disabled = disabled
        self._file = file or AccessFile(None)
        self._revision = disabled.revision()
        self._known = frozenset(disabled.all())

    def refresh(self) -> None:
        """Take in what changed in the catalog; may block."""
        revision = self._disabled.revision()
        if revision != self._revision:
            self._known = frozenset(self._disabled.all())
            self._revision = revision

    def is_disabled(self, tenant: str) -> bool:
        """Return whether calls of `tenant` are refused."""
        return tenant in self._known or tenant in self._file.listed.disabled


def tenant_disabled(tenant: str) -> PermissionDeniedError:
    """Return the error for a caller who is known and whose tenant is disabled."""
    return PermissionDeniedError(
        f"tenant {tenant!r} is disabled; what it has is kept, and an operator lets it call again "
        f"with `loramux tenants enable {tenant}`, or in the file of --access",
        reason="TENANT_DISABLED",
    )
