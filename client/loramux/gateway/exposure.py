"""Whether the gateway may safely be reachable from other machines."""

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
    """Check that other machines get no access without keys, and cannot read keys in transit.

    Args:
        host: The address that the gateway listens on.
        open_backend: Connects to the server.
        certificate: The certificate that an exposed gateway presents to the server, which must
            not name a caller: every caller would act as it.
        is_exposed: Whether other machines can reach the gateway, and `--insecure` is not set.
        has_tls: Whether the gateway serves TLS.

    Raises:
        LoramuxError: Access would be open, the connection to the server would not be safe, or the
            server cannot be reached to check this.
        OSError: The certificate cannot be read.
    """
    if certificate:
        try:
            check_names_nobody("--target-cert", certificate)
        except ValueError as error:
            raise InvalidArgumentError(str(error)) from None
    lacks = ""
    if is_exposed and not has_tls:
        lacks = "the gateway has no TLS: set --tls-cert and --tls-key"
    elif asyncio.run(_answers_without_key(open_backend, asks=is_exposed)):
        lacks = "the server has no API keys: create one with `loramux keys create --store DIR`"
    if lacks:
        raise FailedPreconditionError(
            f"--host {host}: other machines can reach this address, but {lacks}. Or bind to "
            "127.0.0.1, or add --insecure if a proxy or the network restricts access"
        )


async def _answers_without_key(open_backend: Callable[[], Backend], *, asks: bool) -> bool:
    """Return whether the server answers a caller without a key; False if not `asks`.

    Raises:
        LoramuxError: The connection to the server would not be safe, or the call fails.
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
