"""Identifying the caller from the metadata and the client certificate of a call."""

from collections.abc import Callable, Iterable, Mapping

from loramux.errors import LoramuxError, PermissionDeniedError, UnauthenticatedError
from loramux_server.access.caller import LOCAL_ADMIN, Caller
from loramux_server.access.certificates import Certificates
from loramux_server.access.key_ring import KeyRing
from loramux_server.access.tenants import Tenants, tenant_disabled

_HEADER = "authorization"
_SCHEME = "bearer"


class Authenticator:
    """Identifies callers by key or certificate, and decides whose calls may continue."""

    def __init__(
        self, ring: KeyRing, tenants: Tenants, certificates: Certificates | None = None
    ) -> None:
        """Prepare.

        Args:
            ring: The valid keys.
            tenants: Which tenants are disabled.
            certificates: Reads callers from client certificates; None ignores certificates.
        """
        self.ring = ring
        self._tenants = tenants
        self._certificates = certificates

    @property
    def is_open(self) -> bool:
        """Whether every caller is the administrator, because no way to identify one is set up."""
        return self.ring.is_empty and self._certificates is None

    def identify(
        self,
        metadata: Iterable[tuple[str, str | bytes]],
        peer: Callable[[], Mapping[str, Iterable[bytes]]],
    ) -> Caller:
        """Return who makes a call.

        Args:
            metadata: The metadata of the call.
            peer: Returns the peer's properties that the transport verified.

        Raises:
            UnauthenticatedError: It has neither a valid key nor a certificate that names a caller;
                the message does not tell which check failed.
            PermissionDeniedError: Its key and its certificate belong to different tenants.
        """
        if self.is_open:
            return LOCAL_ADMIN
        shown = [value for name, value in metadata if name == _HEADER]
        certified = self._certificates.caller(peer()) if self._certificates else None
        if not shown and certified:
            return certified
        keyed = self._keyed(shown)
        if keyed is None:
            raise unauthenticated()
        if certified and certified.tenant != keyed.tenant:
            raise PermissionDeniedError(
                "the key and the client's certificate belong to different tenants",
                reason="PERMISSION_DENIED",
            )
        return keyed

    def refusal(self, caller: Caller) -> LoramuxError | None:
        """Return why a call of `caller`, once identified, must not go on; None if it may."""
        if not self._is_valid(caller):
            return unauthenticated()
        # Disclosed to authenticated callers only.
        return tenant_disabled(caller.tenant) if self._tenants.is_disabled(caller.tenant) else None

    def _is_valid(self, caller: Caller) -> bool:
        if self.is_open:
            return True
        if caller.key_id:
            return self.ring.is_valid(caller)
        # Without a key, it had a certificate, or the server was open until now.
        return self._certificates is not None

    def _keyed(self, shown: list[str | bytes]) -> Caller | None:
        # With two headers, a proxy may have checked the other one.
        if len(shown) != 1 or not isinstance(shown[0], str):
            return None
        scheme, _, text = shown[0].partition(" ")
        return self.ring.find(text) if scheme.lower() == _SCHEME else None


def unauthenticated() -> UnauthenticatedError:
    """Return the error for callers that cannot be authenticated; always the same one."""
    return UnauthenticatedError(
        "the call needs a valid key, as metadata `authorization: Bearer lmx_…`",
        reason="UNAUTHENTICATED",
    )
