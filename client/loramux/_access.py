"""How a client shows who it is, and makes sure of who answers."""

import ipaddress
import os
from pathlib import Path
from typing import TYPE_CHECKING, cast

import grpc

from loramux._calling import Calling, Ended
from loramux._certificate_files import read_pair
from loramux._channel import (
    Routing,
    Targets,
    address,
    addresses,
    checked,
    each,
    options,
    server_options,
)
from loramux._routing.aio_routed import AioRoutedChannel
from loramux._routing.routed import Metadata, RoutedChannel
from loramux.errors import InvalidArgumentError

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

KEY_VARIABLE = "LORAMUX_API_KEY"
CA_VARIABLE = "LORAMUX_CA"
CERT_VARIABLE = "LORAMUX_CERT"
CERT_KEY_VARIABLE = "LORAMUX_CERT_KEY"
PLAINTEXT_VARIABLE = "LORAMUX_PLAINTEXT"

Tls = bool | str | Path | None
"""Whether the connection is encrypted: with the authorities of the system, or those of a file."""
Certificate = tuple[str | Path, str | Path]
"""PEM files of a client certificate, which may be followed by those that signed it, and its key."""


def open_channel(
    target: Targets,
    *,
    key: str | None,
    tls: Tls,
    certificate: Certificate | None = None,
    credentials: grpc.ChannelCredentials | None,
    retries: bool,
    routing: Routing = "adapter",
    tracer_provider: "TracerProvider | None",
) -> grpc.Channel:
    """Return a channel to `target`; see `Client` for the arguments.

    Raises:
        InvalidArgumentError: The key cannot be one, or would be sent where others can read it; the
            certificate cannot be used; or there is no such routing.
        OSError: A file of authorities, or of the certificate, cannot be read.
    """
    key = checked_key(key)
    credentials = _credentials(target, bool(key), tls, certificate, credentials)
    by_adapter = checked(routing) == "adapter"

    def connect(place: str, settings: list[tuple[str, int | str]]) -> grpc.Channel:
        if credentials:
            return grpc.secure_channel(place, credentials, settings)
        return grpc.insecure_channel(place, settings)

    channel: grpc.Channel | RoutedChannel
    channel = connect(address(target), options(target, retries=retries))
    if servers := addresses(target):
        settings = server_options(target, retries=retries)
        channel = RoutedChannel(
            channel,
            lambda server: connect(server, settings),
            servers,
            by_adapter=by_adapter,
            retries=retries,
        )
    return cast(grpc.Channel, Calling(channel, _showing(key), tracer_provider))


def open_aio_channel(
    target: Targets,
    *,
    key: str | None,
    tls: Tls,
    certificate: Certificate | None = None,
    credentials: grpc.ChannelCredentials | None,
    retries: bool,
    routing: Routing = "adapter",
    tracer_provider: "TracerProvider | None",
    forwards: bool = False,
    call_ended: Ended | None = None,
) -> grpc.aio.Channel:
    """Return a channel for an event loop; see `open_channel`.

    With `forwards`, its calls are made for others, who show keys of their own: plaintext is
    refused as with a key. `call_ended` is told of every call that ended.
    """
    key = checked_key(key)
    credentials = _credentials(target, bool(key) or forwards, tls, certificate, credentials)
    by_adapter = checked(routing) == "adapter"

    def connect(place: str, settings: list[tuple[str, int | str]]) -> grpc.aio.Channel:
        if credentials:
            return grpc.aio.secure_channel(place, credentials, settings)
        return grpc.aio.insecure_channel(place, settings)

    channel: grpc.aio.Channel | AioRoutedChannel
    channel = connect(address(target), options(target, retries=retries, forwards=forwards))
    if servers := addresses(target):
        settings = server_options(target, retries=retries, forwards=forwards)
        channel = AioRoutedChannel(
            channel,
            lambda server: connect(server, settings),
            servers,
            by_adapter=by_adapter,
            retries=retries,
        )
    return cast(grpc.aio.Channel, Calling(channel, _showing(key), tracer_provider, call_ended))


def _showing(key: str) -> Metadata:
    return (("authorization", f"Bearer {key}"),) if key else ()


def checked_key(key: str | None) -> str:
    """Return the key to show, empty for none; where `key` is None it is that of the environment.

    Raises:
        InvalidArgumentError: It cannot be one.
    """
    if key is None:
        key = os.environ.get(KEY_VARIABLE, "")
    # Without the key in the message.
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise InvalidArgumentError(
            "key holds what no key has: blanks, line ends or letters beyond ASCII",
            reason="INVALID_FIELD",
            field="key",
        )
    return key


def certificate_files(given: Certificate | None) -> tuple[Path, Path] | None:
    """Return the files of the client certificate: those `given`, or else of the environment.

    Raises:
        InvalidArgumentError: The environment has one of the two.
    """
    if given is not None:
        return Path(given[0]), Path(given[1])
    found = os.environ.get(CERT_VARIABLE, ""), os.environ.get(CERT_KEY_VARIABLE, "")
    if all(found):
        return Path(found[0]), Path(found[1])
    if any(found):
        raise InvalidArgumentError(
            f"{CERT_VARIABLE} and {CERT_KEY_VARIABLE} go together; set both",
            reason="INVALID_FIELD",
            field="certificate",
        )
    return None


def _credentials(
    target: Targets,
    shows_key: bool,
    tls: Tls,
    certificate: Certificate | None,
    credentials: grpc.ChannelCredentials | None,
) -> grpc.ChannelCredentials | None:
    """Return what encrypts the connection; None for plaintext."""
    if credentials is not None:
        return credentials
    if certificate is not None and tls is False:
        raise InvalidArgumentError(
            "certificate is given, and tls is False; a certificate is shown over TLS only",
            reason="INVALID_FIELD",
            field="certificate",
        )
    if tls is None and certificate is None and os.environ.get(PLAINTEXT_VARIABLE):
        tls = False
    if tls is None:
        tls = os.environ.get(CA_VARIABLE) or None
    files = None if tls is False else certificate_files(certificate)
    if files:
        authorities = Path(tls).read_bytes() if isinstance(tls, str | Path) else None
        try:
            chain, private = read_pair(*files)
        except ValueError as error:
            raise InvalidArgumentError(
                str(error), reason="INVALID_FIELD", field="certificate"
            ) from None
        return grpc.ssl_channel_credentials(authorities, private, chain)
    if tls is True:
        return grpc.ssl_channel_credentials()
    if tls:
        return grpc.ssl_channel_credentials(Path(tls).read_bytes())
    remote = [place for place in each(target) if not is_local(place)]
    if shows_key and tls is None and remote:
        raise InvalidArgumentError(
            f"a key would go to {remote[0]} in plaintext; set tls=True, or the path of the "
            "server's authority, or tls=False where nobody else can read it",
            reason="INVALID_FIELD",
            field="tls",
        )
    return None


def is_local(target: str) -> bool:
    """Return whether only this machine can reach `target`, or read what goes there."""
    if target.startswith(("unix:", "unix-abstract:")):
        return True
    host = target.rpartition("/")[2].rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.removeprefix("ipv4:")).is_loopback
    except ValueError:
        return False
