"""All settings of a server. Frozen; the flags of `loramux serve` are derived from these fields."""

import re
from typing import Annotated

import msgspec
from msgspec import Meta

from loramux_server.settings.limits import LimitSettings
from loramux_server.wire.engine_config import EngineConfig

_DOMAIN = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?")
_ENDPOINT = re.compile(r"https?://[^\s/?#]+")
_MAX_NAME = 256
_TOGETHER = (
    ("tls_cert", "tls_key"),
    ("tls_key", "tls_cert"),
    ("tls_client_ca", "tls_cert"),
    ("tls_client_domain", "tls_client_ca"),
    ("replica_key", "replica_of"),
    ("replica_ca", "replica_of"),
    ("replica_cert", "replica_of"),
    ("replica_cert", "replica_cert_key"),
    ("replica_cert_key", "replica_cert"),
)
"""(Setting, another that it requires.)"""


class ConfigError(Exception):
    """A setting is invalid; the message names it and says what is expected."""


class ServerConfig(LimitSettings, frozen=True, kw_only=True):
    """The settings of the engine and the frontend. Sizes are in bytes, times in seconds."""

    served_model_name: Annotated[
        tuple[str, ...],
        Meta(
            description="Name of the base model in requests; can be given several times: the "
            "first is reported, all are accepted. Default: the last part of --model and, for a hub "
            "id, the full id."
        ),
    ] = ()
    watchdog: Annotated[
        float,
        Meta(
            ge=0,
            description="Restart the engine after this many seconds without a heartbeat, or "
            "more if its steps have been slow. 0 means never.",
        ),
    ] = 30.0
    quarantine_deaths: Annotated[
        int,
        Meta(
            ge=0,
            description="Quarantine a request or adapter that was in flight in this many "
            "engine failures in a row: it is refused until an operator clears it. 0 means "
            "never.",
        ),
    ] = 2
    probe_interval: Annotated[
        float,
        Meta(
            ge=0,
            description="Probe an engine that has been idle for this many seconds by "
            "generating a token; health checks report the result. 0 means never.",
        ),
    ] = 5.0
    drain_timeout: Annotated[
        float,
        Meta(
            ge=0,
            description="Drain period after SIGTERM: seconds for requests in progress to finish.",
        ),
    ] = 45.0
    log_format: Annotated[
        str,
        Meta(
            pattern="^(text|json)$",
            description="Log format: text, or json, which also logs a line for each call.",
        ),
    ] = "text"
    audit_log: Annotated[
        str | None,
        Meta(
            description="Append a JSON line to this file for every operation that changes "
            "something: who, what, when, and the outcome. It is written before the caller "
            "gets a reply."
        ),
    ] = None
    tracing_endpoint: Annotated[
        str | None,
        Meta(
            description="Export traces to the OpenTelemetry collector at this URL, such as "
            "http://127.0.0.1:4317; the OTEL_… variables configure the rest. Default: no "
            "tracing.",
        ),
    ] = None

    @property
    def engine(self) -> EngineConfig:
        """The settings that the engine process needs."""
        return msgspec.convert(
            {name: getattr(self, name) for name in EngineConfig.__struct_fields__}, EngineConfig
        )


def make_config(settings: dict[str, object]) -> ServerConfig:
    """Return a validated config.

    Raises:
        ConfigError: A setting is invalid, or lacks another that it requires; the message names it.
    """
    try:
        config = msgspec.convert(settings, ServerConfig)
    except msgspec.ValidationError as error:
        raise ConfigError(_explained(str(error), settings)) from None
    for name in ("listen", "metrics"):
        split_address(name, getattr(config, name))
    domain = config.tls_client_domain
    if domain is not None and not _DOMAIN.fullmatch(domain):
        raise ConfigError(f"--tls-client-domain is {domain!r}; expected one such as example.org")
    _check_names(config.served_model_name)
    endpoint = config.tracing_endpoint
    if endpoint is not None and not _ENDPOINT.match(endpoint):
        raise ConfigError(
            f"--tracing-endpoint is {endpoint!r}; expected a URL such as http://127.0.0.1:4317"
        )
    for name, needed in _TOGETHER:
        if getattr(config, name) is not None and getattr(config, needed) is None:
            raise ConfigError(f"{_flag(name)} is set; set {_flag(needed)}, too")
    return config


def _check_names(names: tuple[str, ...]) -> None:
    for name in names:
        if not (name.isprintable() and name == name.strip() and 1 <= len(name) <= _MAX_NAME):
            raise ConfigError(
                f"--served-model-name is {name!r}; expected 1 to {_MAX_NAME} printable characters, "
                "without leading or trailing spaces"
            )
        if names.count(name) > 1:
            raise ConfigError(
                f"--served-model-name {name!r} is given twice; expected different names"
            )


def _explained(message: str, settings: dict[str, object]) -> str:
    """Return msgspec's `message`, rewritten to name the flag and its value."""
    expected, at, path = message.rstrip("`").partition(" - at `$.")
    if not at:
        return message
    name = path.partition("[")[0]  # without the place in a tuple
    return f"{_flag(name)} is {settings[name]!r}; {expected[:1].lower()}{expected[1:]}"


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def split_address(name: str, address: str) -> tuple[str, int]:
    """Split `address` into host and port.

    Raises:
        ConfigError: `address` is not HOST:PORT; the message names the setting `name`.
    """
    host, colon, port = address.rpartition(":")
    if not (colon and host and port.isdecimal() and int(port) < 1 << 16):
        raise ConfigError(f"--{name} is {address!r}, not HOST:PORT with a port from 0 to 65535")
    return host, int(port)
