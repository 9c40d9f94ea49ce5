"""From what comes with a call to who makes it."""

from collections.abc import Callable, Iterable, Mapping

from loramux.errors import LoramuxError, PermissionDeniedError, UnauthenticatedError
from loramux_server.access.caller import LOCAL_ADMIN, Caller
from loramux_server.access.certificates import Certificates
from loramux_server.access.key_ring import KeyRing
from loramux_server.access.tenants import Tenants, tenant_disabled

_HEADER = "authorization"
_SCHEME = "bearer"


class Authenticator:
    """Knows callers by their keys and certificates, and whose calls may go on."""

    def __init__(
        self, ring: KeyRing, tenants: Tenants, certificates: Certificates | None = None
    ) -> None:
        """Prepare.

        Args:
            ring: Asked for keys.
            tenants: Asked which tenants are disabled.
            certificates: Asked what certificates of clients say, if that counts.
        """
        self.ring = ring
        self._tenants = tenants
        self._certificates = certificates

    @property
    def is_open(self) -> bool:
        """Whether anybody is the administrator, because nothing says who else would be."""
        return self.ring.is_empty and self._certificates is None

    def identify(
        self,
        metadata: Iterable[tuple[str, str | bytes]],
        peer: Callable[[], Mapping[str, Iterable[bytes]]],
    ) -> Caller:
        """Return who makes a call.

        Args:
            metadata: What the call brought along.
            peer: Returns what the transport proved of the other side.

        Raises:
            UnauthenticatedError: It brought no good key and no certificate that names a caller;
                which of the ways to fail it was is not said.
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
        """Return why a call of `caller`, once identified, may not go on; None if it may."""
        if not self._is_valid(caller):
            return unauthenticated()
        # Told to those alone who are known.
        return tenant_disabled(caller.tenant) if self._tenants.is_disabled(caller.tenant) else None

    def _is_valid(self, caller: Caller) -> bool:
        if self.is_open:
            return True
        if caller.key_id:
            return self.ring.is_valid(caller)
        # Without a key, it was a certificate, or the server was open until now.
        return self._certificates is not None

    def _keyed(self, shown: list[str | bytes]) -> Caller | None:
        # Of two, a proxy may have checked the other one.
        if len(shown) != 1 or not isinstance(shown[0], str):
            return None
        scheme, _, text = shown[0].partition(" ")
        return self.ring.find(text) if scheme.lower() == _SCHEME else None


def unauthenticated() -> UnauthenticatedError:
    """Return the error for whoever is not known; always the same one."""
    return UnauthenticatedError(
        "the call needs a valid key, as metadata `authorization: Bearer lmx_…`",
        reason="UNAUTHENTICATED",
    )
