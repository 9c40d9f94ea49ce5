"""How a client reaches its servers: addresses, and what is tried again when.

Calls that change nothing are made again where the server was not there, or said so before its
answer began: gRPC itself does that, waits as long as the server says or longer each time, and
spends at most a part of what succeeds on it, so that a crowd of clients cannot double the load of
a server that fails. Where calls choose among several servers, `_routing.attempts` does it by the
same numbers.
"""

import ipaddress
import json
import socket
from collections.abc import Sequence
from typing import Literal

import grpc

from loramux._routing.names import Addresses, Name, named
from loramux.errors import InvalidArgumentError

Targets = str | Sequence[str]
"""`HOST:PORT` of a server, or of several with the same adapters; `dns:///HOST:PORT` for a DNS name
with several addresses, which is resolved again periodically and when a connection ends."""
Routing = Literal["adapter", "round_robin"]
"""Load balancing over several servers: affinity by adapter, or round robin."""

MAX_PORT = 65_535
MAX_ATTEMPTS = 5
INITIAL_BACKOFF = 0.4
"""Seconds before the second attempt, unless the server says how long."""
MAX_BACKOFF = 4.0
BACKOFF_MULTIPLIER = 2
# The latter is how a call ends that reaches a server in the moment in which it closes; who gives up
# a call does not hear of it any more.
RETRYABLE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
RETRY_TOKENS = 100
"""A failure takes one; from half on nothing is tried again."""
RETRY_RATIO = 0.1
"""A success brings so much of one back."""

_OPTIONS: list[tuple[str, int]] = [
    # An answer with log-probabilities can be large; a request cannot.
    ("grpc.max_receive_message_length", 64 << 20),
    # Seldom enough for the server and whatever proxy is before it.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    # The former has no effect of its own where this is a minute, as it is by default.
    ("grpc.http2.ping_timeout_ms", 20_000),
    # A server that starts again is back within seconds.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 1_000),
]
_REPEATABLE = {
    "loramux.v1.GenerationService": ["Generate", "StreamGenerate"],
    "loramux.v1.ClassificationService": ["Classify"],
    "loramux.v1.QuestionAnsweringService": ["Answer"],
    "loramux.v1.EmbeddingService": ["Embed"],
    "loramux.v1.AdapterService": ["GetAdapter", "ListAdapters", "DownloadAdapter"],
    "loramux.v1.AliasService": ["ListAliasMoves"],
    "loramux.v1.ResidencyService": ["PinAdapter", "UnpinAdapter", "PrefetchAdapter"],
    "loramux.v1.ServerService": ["GetServerInfo", "GetServerLoad"],
    "loramux.v1.QuarantineService": ["ListQuarantined"],
}
"""What does no more the second time than the first."""
_POLICY = {
    "maxAttempts": MAX_ATTEMPTS,
    "initialBackoff": f"{INITIAL_BACKOFF}s",
    "maxBackoff": f"{MAX_BACKOFF}s",
    "backoffMultiplier": BACKOFF_MULTIPLIER,
    "retryableStatusCodes": [code.name for code in RETRYABLE],
}


_HEALTHY: dict[str, object] = {
    # Who drains or has lost its engine says so, and is left out until it is back.
    "loadBalancingConfig": [{"round_robin": {}}],
    "healthCheckConfig": {"serviceName": "loramux.v1.GenerationService"},
}
_NEVER = 2**31 - 1


def each(targets: Targets) -> list[str]:
    """Return every one of `targets`."""
    return [targets] if isinstance(targets, str) else list(targets)


def address(targets: Targets) -> str:
    """Return the address of `targets` as gRPC takes it; names of several are looked up now.

    Raises:
        InvalidArgumentError: There is none, or one has no port that there can be or is an address
            of HTTP, or one of several is no HOST:PORT that can be found.
    """
    targets = each(targets)
    for target in targets:
        _check(target)
    if len(targets) == 1:
        return targets[0]
    if not targets:
        raise InvalidArgumentError("target is an empty list; give HOST:PORT of a server")
    found = [_resolved(target) for target in targets]
    for version, scheme in ((4, "ipv4"), (6, "ipv6")):
        if all(version in addresses for addresses in found):
            return f"{scheme}:{','.join(addresses[version] for addresses in found)}"
    raise InvalidArgumentError(
        f"target is {', '.join(targets)}; give addresses that are all of IPv4, or all of IPv6"
    )


def checked(routing: str) -> Routing:
    """Return `routing` if it is a way to spread calls.

    Raises:
        InvalidArgumentError: It is none.
    """
    if routing == "adapter":
        return "adapter"
    if routing == "round_robin":
        return "round_robin"
    raise InvalidArgumentError(
        f"routing is {routing!r}; give adapter or round_robin",
        reason="INVALID_FIELD",
        field="routing",
    )


def addresses(targets: Targets) -> Addresses | None:
    """Return what knows each of several servers; None where there is one address for all."""
    targets = each(targets)
    if len(targets) > 1:
        return Addresses(tuple(dict.fromkeys(targets)))
    name = named(targets[0])
    return Name(*name) if name else None


_FORWARDING: list[tuple[str, int | str]] = [
    # What is not read soon is to wait at the server, which pauses what makes it.
    ("grpc.http2.lookahead_bytes", 16 << 10),
    ("grpc.http2.bdp_probe", 0),
]


def options(
    targets: Targets, *, retries: bool, forwards: bool = False
) -> list[tuple[str, int | str]]:
    """Return the options of a channel to `targets`, on which gRPC makes calls again or does not.

    With `forwards`, answers go on to others, who may read them slowly.
    """
    config: dict[str, object] = {}
    if retries:
        config["methodConfig"] = [
            {
                "name": [
                    {"service": service, "method": method}
                    for service, methods in _REPEATABLE.items()
                    for method in methods
                ],
                "retryPolicy": _POLICY,
            }
        ]
        config["retryThrottling"] = {"maxTokens": RETRY_TOKENS, "tokenRatio": RETRY_RATIO}
    more: list[tuple[str, int | str]] = [("grpc.enable_retries", int(retries))]
    targets = each(targets)
    if len(targets) > 1 or targets[0].startswith("dns:"):
        config |= _HEALTHY
    if len(targets) > 1:
        more.append(("grpc.default_authority", targets[0]))
    more.append(("grpc.service_config", json.dumps(config)))
    return [*_OPTIONS, *(_FORWARDING if forwards else ()), *more]


def server_options(
    targets: Targets, *, retries: bool, forwards: bool = False
) -> list[tuple[str, int | str]]:
    """Return the options of a channel to one of the servers of `targets`.

    It is ready while the server serves, and stays connected while there are no calls.
    """
    authority = each(targets)[0]
    if name := named(authority):
        host, port = name
        authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return [
        *_OPTIONS,
        *(_FORWARDING if forwards else ()),
        # What needs no proxy is known by its name, and addresses were found without one.
        *([("grpc.enable_http_proxy", 0)] if name else ()),
        # What gRPC knows to have not reached a server goes there again in any case.
        ("grpc.enable_retries", int(retries)),
        ("grpc.client_idle_timeout_ms", _NEVER),
        ("grpc.default_authority", authority),
        ("grpc.service_config", json.dumps(_HEALTHY)),
    ]


def _check(target: str) -> None:
    """Demand that `target` may be what it says.

    Raises:
        InvalidArgumentError: gRPC would take it for another host or port.
    """
    scheme, _, rest = target.rpartition("://")
    host, _, port = target.rpartition(":")
    if scheme in ("http", "https", "grpc", "grpcs"):
        what = f"HOST:PORT alone, such as {rest}"
    elif host and port.isdecimal() and not target.startswith("unix") and int(port) > MAX_PORT:
        what = f"a port from 1 to {MAX_PORT}"
    else:
        return
    raise InvalidArgumentError(
        f"target is {target!r}; give {what}", reason="INVALID_FIELD", field="target"
    )


def _resolved(target: str) -> dict[int, str]:
    """Return an address of `target` for each version of IP in which it has one."""
    host, colon, port = target.rpartition(":")
    if not (colon and host and port.isdecimal()):
        raise InvalidArgumentError(f"target {target!r} is not HOST:PORT")
    try:
        infos = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
    except OSError as error:
        raise InvalidArgumentError(f"target {target!r} cannot be found: {error}") from None
    found: dict[int, str] = {}
    for *_, where in infos:
        ip = ipaddress.ip_address(str(where[0]).partition("%")[0])
        found.setdefault(ip.version, f"{ip}:{port}" if ip.version == 4 else f"[{ip}]:{port}")
    return found
