"""Whether the gateway may be reached by other machines."""

import asyncio
from collections.abc import Callable
from pathlib import Path

from loramux._certificate_files import check_names_nobody
from loramux.errors import FailedPreconditionError, InvalidArgumentError, UnauthenticatedError
from loramux.gateway.backend import Backend
from loramux.gateway.caller import Caller


def check_exposure(
    host: str,
    open_backend: Callable[[], Backend],
    *,
    certificate: Path | None,
    is_exposed: bool,
    has_tls: bool,
) -> None:
    """Demand that other machines find nothing open and read no keys, unless that is wanted.

    Args:
        host: What the gateway listens on.
        open_backend: Connects to the server.
        certificate: What a gateway that other machines may reach shows to the server.
        is_exposed: Whether they may reach it, and nobody said that this is wanted.
        has_tls: Whether they would reach it over TLS.

    Raises:
        LoramuxError: Something would be open, there is no safe way to the server, or the server is
            needed to find that out and cannot be reached.
        OSError: The certificate cannot be read.
    """
    if certificate:
        try:
            check_names_nobody("--target-cert", certificate)
        except ValueError as error:
            raise InvalidArgumentError(str(error)) from None
    lacks = ""
    if is_exposed and not has_tls:
        lacks = "the gateway lacks TLS: set --tls-cert and --tls-key"
    elif asyncio.run(_lets_anybody_in(open_backend, asks=is_exposed)):
        lacks = "the server lacks keys: make one with `loramux keys create --store DIR`"
    if lacks:
        raise FailedPreconditionError(
            f"--host {host}: other machines can reach that, and {lacks}. Or bind to "
            "127.0.0.1, or add --insecure where a proxy or the network keeps others out"
        )


async def _lets_anybody_in(open_backend: Callable[[], Backend], *, asks: bool) -> bool:
    """Return whether the server answers who shows no key, as far as that is asked.

    Raises:
        LoramuxError: There is no safe way to the server, or it cannot be asked.
    """
    backend = open_backend()
    try:
        if asks:
            await backend.info(Caller("", "", (), {}))
    except UnauthenticatedError:
        return False
    finally:
        await backend.close()
    return asks
