"""What certificates of clients say of their callers.

The name is the URI `spiffe://DOMAIN/tenant/TENANT/role/ROLE` among the certificate's alternative
names; neither its common name nor a name of another kind that looks so. The transport has checked
the certificate.
"""

import re
from collections.abc import Iterable, Mapping

from loramux_adapters import PackageError, check_adapter_name
from loramux_server.access.caller import Caller, Role

_URIS = "peer_uri"


class Certificates:
    """Reads the names of one domain."""

    def __init__(self, domain: str) -> None:
        """Believe certificates that name callers of `domain`."""
        self._form = re.compile(
            rf"spiffe://{re.escape(domain)}/tenant/(?P<tenant>[^/]+)/role/(?P<role>[^/]+)"
        )

    def caller(self, peer: Mapping[str, Iterable[bytes]]) -> Caller | None:
        """Return the caller that a certificate names, or None if it names none, or several."""
        found = {caller for name in peer.get(_URIS, ()) if (caller := self._read(name))}
        return found.pop() if len(found) == 1 else None

    def _read(self, name: bytes) -> Caller | None:
        match = self._form.fullmatch(name.decode("ascii", "replace"))
        if match is None or match["role"] not in set(Role):
            return None
        try:
            check_adapter_name(match["tenant"])
        except PackageError:
            return None
        return Caller(match["tenant"], Role(match["role"]))
