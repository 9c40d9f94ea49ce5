"""Reading the caller from a client certificate (SPIFFE id).

It is the URI `spiffe://DOMAIN/tenant/TENANT/role/ROLE` among the subject alternative names. The
common name, or an alternative name of another type that looks like it, does not count. The
transport has verified the certificate.
"""

import re
from collections.abc import Iterable, Mapping

from loramux_adapters import PackageError, check_adapter_name
from loramux_server.access.caller import Caller, Role

_URIS = "peer_uri"


class Certificates:
    """Reads SPIFFE ids of one trust domain."""

    def __init__(self, domain: str) -> None:
        """Accept certificates that name callers of the trust domain `domain`."""
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
