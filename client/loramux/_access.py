"""Authentication of a client and its server: API keys, client certificates, TLS."""

import ipaddress
import os
from pathlib import Path
from typing import TYPE_CHECKING, cast

import grpc

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
from loramux._instrumented_channel import Ended, InstrumentedChannel
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
"""Whether to use TLS: with the system's CA certificates, or with those of a PEM file."""
Certificate = tuple[str | Path, str | Path]
"""PEM files of a client certificate, which may include intermediates, and of its private key."""


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
        InvalidArgumentError: The key is malformed, or would be sent over the network in plaintext;
            the certificate cannot be used; or `routing` is unknown.
        OSError: A file with CA certificates or the client certificate cannot be read.
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
    return cast(grpc.Channel, InstrumentedChannel(channel, _key_metadata(key), tracer_provider))


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

    With `forwards`, calls are made for others, who present their own keys, so plaintext is refused
    as with a key. `call_ended` is called after every call.
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
    return cast(
        grpc.aio.Channel,
        InstrumentedChannel(channel, _key_metadata(key), tracer_provider, call_ended),
    )


def _key_metadata(key: str) -> Metadata:
    return (("authorization", f"Bearer {key}"),) if key else ()


def checked_key(key: str | None) -> str:
    """Return the key to present, empty for none; None takes the one in the environment.

    Raises:
        InvalidArgumentError: It is malformed.
    """
    if key is None:
        key = os.environ.get(KEY_VARIABLE, "")
    # The message must not contain the key.
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise InvalidArgumentError(
            "key is malformed: it contains spaces, control characters or non-ASCII characters",
            reason="INVALID_FIELD",
            field="key",
        )
    return key


def certificate_files(given: Certificate | None) -> tuple[Path, Path] | None:
    """Return the files of the client certificate and its key: `given`, or from the environment.

    Raises:
        InvalidArgumentError: The environment has only one of the two.
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
    """Return the credentials of a TLS connection; None for plaintext."""
    if credentials is not None:
        return credentials
    if certificate is not None and tls is False:
        raise InvalidArgumentError(
            "certificate is set but tls is False; client certificates require TLS",
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
            f"the key would be sent to {remote[0]} in plaintext; set tls to True, to the path of "
            "the server's CA certificate, or to False on a trusted network",
            reason="INVALID_FIELD",
            field="tls",
        )
    return None


def is_local(target: str) -> bool:
    """Return whether `target` is a Unix socket or a loopback address."""
    if target.startswith(("unix:", "unix-abstract:")):
        return True
    host = target.rpartition("/")[2].rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.removeprefix("ipv4:")).is_loopback
    except ValueError:
        return False
