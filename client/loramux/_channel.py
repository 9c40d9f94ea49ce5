"""How a client reaches its servers: addresses, channel options and retry policy.

Calls without side effects are retried if the server was unavailable before its answer began. gRPC
does this itself: it waits as long as the server says, or with exponential backoff, within a retry
budget, so that many clients cannot double the load of a failing server. Where calls are routed
among several servers, `_routing.attempts` retries with the same parameters.
"""

import ipaddress
import json
import socket
from collections.abc import Sequence
from typing import Literal

import grpc

from loramux._routing.names import Addresses, DnsName, dns_host_and_port
from loramux.errors import InvalidArgumentError

Targets = str | Sequence[str]
"""`HOST:PORT` of a server, or of several with the same adapters; `dns:///HOST:PORT` for a DNS name
with several addresses, which is resolved again periodically and when a connection ends."""
Routing = Literal["adapter", "round_robin"]
"""Load balancing over several servers: affinity by adapter, or round robin."""

MAX_PORT = 65_535
MAX_ATTEMPTS = 5
INITIAL_BACKOFF = 0.4
"""Seconds before the second attempt, unless the server gives a retry delay."""
MAX_BACKOFF = 4.0
BACKOFF_MULTIPLIER = 2
# CANCELLED is the status of calls that reach a server while it shuts down; a caller that cancels
# its call never sees a status.
RETRYABLE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
RETRY_TOKENS = 100
"""Retry budget: each failure takes one token, and at half of it or less there are no retries."""
RETRY_RATIO = 0.1
"""Tokens that a success gives back."""

_OPTIONS: list[tuple[str, int]] = [
    # A response with log-probabilities can be large; a request cannot.
    ("grpc.max_receive_message_length", 64 << 20),
    # Rare enough for the server and for proxies in between.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    # Without this, which defaults to a minute, the former has no effect.
    ("grpc.http2.ping_timeout_ms", 20_000),
    # A server is back within seconds after a restart.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 1_000),
]
_REPEATABLE = {
    "loramux.v1.GenerationService": ["Generate", "StreamGenerate"],
    "loramux.v1.TokenizationService": ["Tokenize", "Detokenize"],
    "loramux.v1.ClassificationService": ["Classify"],
    "loramux.v1.QuestionAnsweringService": ["Answer"],
    "loramux.v1.EmbeddingService": ["Embed"],
    "loramux.v1.AdapterService": ["GetAdapter", "ListAdapters", "DownloadAdapter"],
    "loramux.v1.AliasService": ["ListAliasMoves"],
    "loramux.v1.ResidencyService": ["PinAdapter", "UnpinAdapter", "PrefetchAdapter"],
    "loramux.v1.ServerService": ["GetServerInfo", "GetServerLoad"],
    "loramux.v1.QuarantineService": ["ListQuarantined"],
}
"""Methods without side effects, or whose effect is the same if repeated. Not WatchAdapters, which
would miss changes in between."""
_POLICY = {
    "maxAttempts": MAX_ATTEMPTS,
    "initialBackoff": f"{INITIAL_BACKOFF}s",
    "maxBackoff": f"{MAX_BACKOFF}s",
    "backoffMultiplier": BACKOFF_MULTIPLIER,
    "retryableStatusCodes": [code.name for code in RETRYABLE],
}


_HEALTHY: dict[str, object] = {
    # A server that drains or has lost its engine is unhealthy, and is skipped until it recovers.
    "loadBalancingConfig": [{"round_robin": {}}],
    "healthCheckConfig": {"serviceName": "loramux.v1.GenerationService"},
}
_NEVER = 2**31 - 1


def each(targets: Targets) -> list[str]:
    """Return `targets` as a list."""
    return [targets] if isinstance(targets, str) else list(targets)


def address(targets: Targets) -> str:
    """Return the address of `targets` in gRPC's form; the names of several are resolved now.

    Raises:
        InvalidArgumentError: There is none; one has an invalid port or is an HTTP URL; or one of
            several is not HOST:PORT or cannot be resolved.
    """
    targets = each(targets)
    for target in targets:
        _check(target)
    if len(targets) == 1:
        return targets[0]
    if not targets:
        raise InvalidArgumentError("target is an empty list; expected HOST:PORT of a server")
    found = [_resolved(target) for target in targets]
    for version, scheme in ((4, "ipv4"), (6, "ipv6")):
        if all(version in addresses for addresses in found):
            return f"{scheme}:{','.join(addresses[version] for addresses in found)}"
    raise InvalidArgumentError(
        f"target is {', '.join(targets)}; expected addresses that are all IPv4 or all IPv6"
    )


def checked(routing: str) -> Routing:
    """Return `routing` if it is a known routing policy.

    Raises:
        InvalidArgumentError: It is not.
    """
    if routing == "adapter":
        return "adapter"
    if routing == "round_robin":
        return "round_robin"
    raise InvalidArgumentError(
        f"routing is {routing!r}; expected adapter or round_robin",
        reason="INVALID_FIELD",
        field="routing",
    )


def addresses(targets: Targets) -> Addresses | None:
    """Return the resolver of several servers; None for a single address."""
    targets = each(targets)
    if len(targets) > 1:
        return Addresses(tuple(dict.fromkeys(targets)))
    name = dns_host_and_port(targets[0])
    return DnsName(*name) if name else None


_FORWARDING: list[tuple[str, int | str]] = [
    # Unread data should stay at the server, which then pauses generation (backpressure).
    ("grpc.http2.lookahead_bytes", 16 << 10),
    ("grpc.http2.bdp_probe", 0),
]


def options(
    targets: Targets, *, retries: bool, forwards: bool = False
) -> list[tuple[str, int | str]]:
    """Return the options of a channel to `targets`, with or without gRPC's retries.

    With `forwards`, answers are passed on to others, who may read them slowly.
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
    """Return the options of a channel to a single server of `targets`.

    It is ready while the server is healthy, and stays connected when idle.
    """
    authority = each(targets)[0]
    if name := dns_host_and_port(authority):
        host, port = name
        authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return [
        *_OPTIONS,
        *(_FORWARDING if forwards else ()),
        # no_proxy has host names, not addresses, and the names were resolved without a proxy.
        *([("grpc.enable_http_proxy", 0)] if name else ()),
        # Transparent retries, of calls that did not reach the server, happen in any case.
        ("grpc.enable_retries", int(retries)),
        ("grpc.client_idle_timeout_ms", _NEVER),
        ("grpc.default_authority", authority),
        ("grpc.service_config", json.dumps(_HEALTHY)),
    ]


def _check(target: str) -> None:
    """Check that gRPC would not misinterpret `target`.

    Raises:
        InvalidArgumentError: gRPC would take it for another host or port.
    """
    scheme, _, rest = target.rpartition("://")
    host, _, port = target.rpartition(":")
    if scheme in ("http", "https", "grpc", "grpcs"):
        what = f"HOST:PORT without a scheme, such as {rest}"
    elif host and port.isdecimal() and not target.startswith("unix") and int(port) > MAX_PORT:
        what = f"a port from 1 to {MAX_PORT}"
    else:
        return
    raise InvalidArgumentError(
        f"target is {target!r}; expected {what}", reason="INVALID_FIELD", field="target"
    )


def _resolved(target: str) -> dict[int, str]:
    """Return an address of `target` for each IP version that it has."""
    host, colon, port = target.rpartition(":")
    if not (colon and host and port.isdecimal()):
        raise InvalidArgumentError(f"target {target!r} is not HOST:PORT")
    try:
        infos = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
    except OSError as error:
        raise InvalidArgumentError(f"target {target!r} cannot be resolved: {error}") from None
    found: dict[int, str] = {}
    for *_, where in infos:
        ip = ipaddress.ip_address(str(where[0]).partition("%")[0])
        found.setdefault(ip.version, f"{ip}:{port}" if ip.version == 4 else f"[{ip}]:{port}")
    return found
