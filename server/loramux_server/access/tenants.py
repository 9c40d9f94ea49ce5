"""Which tenants are disabled.

Refreshed several times a second, as keys are, because `loramux tenants` changes it from another
process.
"""

from loramux.errors import PermissionDeniedError
from loramux_server.access.access_file import AccessFile
from loramux_server.store.disabled_tenants import DisabledTenants


class Tenants:
    """The disabled tenants. Used on the event loop; `refresh` may run concurrently in a thread."""

    def __init__(self, disabled: DisabledTenants, file: AccessFile | None = None) -> None:
        """Read which tenants are disabled in the catalog; those of `file` count as well."""
        self._disabled = disabled
        self._file = file or AccessFile(None)
        self._revision = disabled.revision()
        self._known = frozenset(disabled.all())

    def refresh(self) -> None:
        """Reload the disabled tenants of the catalog if they changed; may block."""
        revision = self._disabled.revision()
        if revision != self._revision:
            self._known = frozenset(self._disabled.all())
            self._revision = revision

    def is_disabled(self, tenant: str) -> bool:
        """Return whether calls of `tenant` are refused."""
        return tenant in self._known or tenant in self._file.listed.disabled


def tenant_disabled(tenant: str) -> PermissionDeniedError:
    """Return the error for an authenticated caller whose tenant is disabled."""
    return PermissionDeniedError(
        f"tenant {tenant!r} is disabled; its adapters are kept, and an operator can enable it "
        f"with `loramux tenants enable {tenant}`, or in the file of --access",
        reason="TENANT_DISABLED",
    )
