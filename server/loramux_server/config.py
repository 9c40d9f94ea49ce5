"""All settings of a server. Frozen; the flags of `loramux serve` are made from these fields."""

import re
from typing import Annotated

import msgspec
from msgspec import Meta

from loramux_server.wire.engine_config import EngineConfig

_DOMAIN = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?")
_ENDPOINT = re.compile(r"https?://[^\s/?#]+")
_MAX_NAME = 256
_TOGETHER = (
    ("tls_cert", "tls_key"),
    ("tls_key", "tls_cert"),
    ("tls_client_ca", "tls_cert"),
    ("tls_client_domain", "tls_client_ca"),
)
"""Settings that mean nothing without the other one."""


class ConfigError(Exception):
    """A setting is wrong; the message says which and what would be right."""


class ServerConfig(EngineConfig, frozen=True, kw_only=True):
    """The engine's settings and those of the frontend. Sizes are in bytes, times in seconds."""

    served_model_name: Annotated[
        tuple[str, ...],
        Meta(
            description="What clients call the base model; can be given several times: the first "
            "is reported, all are accepted. By default the last part of --model, and all of it "
            "where that is a hub id."
        ),
    ] = ()
    adapters: Annotated[
        str | None,
        Meta(
            description="Directory to serve adapters from: PEFT folders and packages, each "
            "named after its file or folder."
        ),
    ] = None
    strict_base: Annotated[
        bool,
        Meta(
            description="Refuse adapters that say that they were made for another base model, by "
            "the name in their config or the fingerprint in their manifest; otherwise there is a "
            "warning."
        ),
    ] = False
    adapters_interval: Annotated[
        float,
        Meta(
            ge=0,
            description="Seconds between scans of --adapters for new, changed and removed "
            "adapters; 0 scans at startup only.",
        ),
    ] = 5.0
    replica_of: Annotated[
        str | None,
        Meta(
            description="Run as a replica of the server at HOST:PORT: mirror its adapters and "
            "aliases, and forward changes to it."
        ),
    ] = None
    replica_key: Annotated[
        str | None,
        Meta(description="File with an admin API key of the primary (see --replica-of)."),
    ] = None
    replica_ca: Annotated[
        str | None,
        Meta(description="PEM file of CA certificates to verify the primary's certificate with."),
    ] = None
    replica_cert: Annotated[
        str | None,
        Meta(description="PEM file of the client certificate to present to the primary."),
    ] = None
    replica_cert_key: Annotated[
        str | None, Meta(description="PEM file of the private key for --replica-cert.")
    ] = None
    adapter_templates: Annotated[
        bool,
        Meta(
            description="Format chats with the chat template in an adapter's package, where it "
            "has one; --no-adapter-templates refuses chats with such an adapter."
        ),
    ] = True
    store: Annotated[
        str | None,
        Meta(
            description="Directory for uploaded adapters; default: one per base model in the "
            "user's data directory."
        ),
    ] = None
    catalog: Annotated[
        str | None,
        Meta(
            description="SQLAlchemy URL of the database for adapter names and versions, such "
            "as postgresql+psycopg://user@host/name; default: SQLite in --store."
        ),
    ] = None
    listen: Annotated[
        str, Meta(description="HOST:PORT to serve gRPC on; port 0 picks a free one.")
    ] = "127.0.0.1:50051"
    metrics: Annotated[
        str,
        Meta(
            description="HOST:PORT to serve Prometheus metrics on; port 0 picks a free one. "
            "Where other machines can reach it, it is HTTPS and requires a client "
            "certificate signed by --tls-client-ca."
        ),
    ] = "127.0.0.1:9400"
    tls_cert: Annotated[
        str | None,
        Meta(description="PEM file of the server's certificate chain; reloaded when it changes."),
    ] = None
    tls_key: Annotated[
        str | None,
        Meta(description="PEM file of the private key for --tls-cert; reloaded when it changes."),
    ] = None
    tls_client_ca: Annotated[
        str | None,
        Meta(
            description="Require client certificates (mTLS): PEM file of the CA certificates, "
            "one of which must have signed them."
        ),
    ] = None
    tls_client_domain: Annotated[
        str | None,
        Meta(
            description="Accept client certificates in place of API keys: SPIFFE trust domain. "
            "The caller is spiffe://DOMAIN/tenant/TENANT/role/ROLE.",
        ),
    ] = None
    insecure: Annotated[
        bool,
        Meta(
            description="Dangerous: let other machines connect without TLS, and with admin "
            "rights as long as no API key exists. Only where a proxy or the network keeps "
            "others out."
        ),
    ] = False
    access: Annotated[
        str | None,
        Meta(
            description="TOML file with API keys and tenants in addition to those in the "
            "store; reloaded when it changes."
        ),
    ] = None
    ready_file: Annotated[
        str | None,
        Meta(
            description="File to write the server's addresses to, as JSON, once it serves requests."
        ),
    ] = None
    max_upload: Annotated[
        int,
        Meta(
            ge=1,
            description="Maximum size of an uploaded package.",
            extra_json_schema={"format": "bytes"},
        ),
    ] = 1 << 30
    upload_idle_timeout: Annotated[
        float,
        Meta(gt=0, description="End an upload stream that sends nothing for this many seconds."),
    ] = 30.0
    min_upload_rate: Annotated[
        int,
        Meta(
            ge=0,
            description="Minimum rate of an upload in bytes per second, averaged over "
            "--upload-idle-timeout; 0 means no minimum.",
            extra_json_schema={"format": "bytes"},
        ),
    ] = 16 << 10
    max_tenant_bytes: Annotated[
        int,
        Meta(
            ge=0,
            description="Storage quota of each tenant: bytes of packages, uploads in progress "
            "included; 0 means no quota.",
            extra_json_schema={"format": "bytes"},
        ),
    ] = 0
    max_tenant_adapters: Annotated[
        int,
        Meta(
            ge=0,
            description="Maximum number of adapters that a tenant may store; 0 means no limit.",
        ),
    ] = 0
    hub_allow: Annotated[
        tuple[str, ...],
        Meta(
            description="Hugging Face Hub repositories to allow imports from, such as ORG/NAME "
            "or ORG/*; repeatable. Default: none."
        ),
    ] = ()
    object_allow: Annotated[
        tuple[str, ...],
        Meta(
            description="URI prefixes of object storage (s3://, gs:// or az://) to allow "
            "imports from, such as s3://BUCKET/adapters; repeatable. Default: none."
        ),
    ] = ()
    oci_allow: Annotated[
        tuple[str, ...],
        Meta(
            description="OCI repositories to allow imports from, such as ghcr.io/ORG/*; "
            "repeatable. Default: none."
        ),
    ] = ()
    resolve: Annotated[
        tuple[str, ...],
        Meta(
            description="Where to fetch an unregistered adapter that a request names; {name} and "
            "{tenant} stand for its own: s3://BUCKET/{tenant}/{name}, hf://ORG/{name} or "
            "/mnt/adapters/{name}. Can be given several times; the first that has it counts."
        ),
    ] = ()
    resolve_ttl: Annotated[
        float,
        Meta(
            ge=0,
            description="Seconds after which a fetched adapter is dropped; a later request fetches "
            "it again. 0 keeps it.",
        ),
    ] = 0.0
    trusted_signer: Annotated[
        tuple[str, ...],
        Meta(
            description="PEM file with an Ed25519 public key; packages that arrive, from "
            "anywhere, must be signed with one of these keys. Can be given several times."
        ),
    ] = ()
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
    upload_expiry: Annotated[
        float,
        Meta(
            gt=0,
            description="Delete an unfinished upload after this many seconds without activity.",
        ),
    ] = 86400.0
    default_timeout: Annotated[
        float, Meta(gt=0, description="Deadline in seconds of calls that come without one.")
    ] = 600.0
    max_completions: Annotated[
        int,
        Meta(
            ge=1,
            le=1024,
            description="Most completions of one request (n), and never more than --max-waiting.",
        ),
    ] = 64
    max_waiting_tokens: Annotated[
        int,
        Meta(
            ge=1,
            description="Queue limit in prompt tokens of all requests; a longer prompt may "
            "wait alone.",
        ),
    ] = 1 << 18
    max_waiting_bytes: Annotated[
        int,
        Meta(
            ge=1,
            description="Queue limit in bytes of all requests, as received, and of their "
            "images, as preprocessed for the model.",
            extra_json_schema={"format": "bytes"},
        ),
    ] = 256 << 20
    max_image_bytes: Annotated[
        int,
        Meta(
            ge=1,
            description="Maximum size of an image file. The size limit of a request follows "
            "from it: three such images and 4M for all else.",
            extra_json_schema={"format": "bytes"},
        ),
    ] = 8 << 20
    max_image_pixels: Annotated[
        int,
        Meta(
            ge=1,
            description="Maximum number of pixels of an image; checked before the model's own "
            "limit.",
        ),
    ] = 1 << 24
    max_lag: Annotated[
        float,
        Meta(
            ge=0,
            description="Overload protection: refuse requests while the frontend's event loop "
            "lags by more than this many seconds in three checks in a row. 0 means no limit.",
        ),
    ] = 1.0
    keepalive: Annotated[
        float,
        Meta(
            gt=0,
            description="Seconds without traffic after which the server sends a client a "
            "keepalive ping, which it must answer.",
        ),
    ] = 60.0
    max_connection_age: Annotated[
        float,
        Meta(
            ge=0,
            description="Seconds after which a client must reconnect, so that clients spread "
            "over all servers behind a DNS name; calls in progress continue. 0 means never.",
        ),
    ] = 1800.0
    stream_interval: Annotated[
        int,
        Meta(
            ge=1,
            le=256,
            description="Tokens to send in one message of a stream; the first token is sent at "
            "once.",
        ),
    ] = 1
    reader_timeout: Annotated[
        float,
        Meta(
            gt=0,
            description="End a stream if its client does not read what was sent for this many "
            "seconds.",
        ),
    ] = 10.0
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

    @property
    def engine(self) -> EngineConfig:
        """The part that the engine process needs."""
        return msgspec.convert(
            {name: getattr(self, name) for name in EngineConfig.__struct_fields__}, EngineConfig
        )


def make_config(settings: dict[str, object]) -> ServerConfig:
    """Return a checked config.

    Raises:
        ConfigError: A setting is out of range; the message names it.
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
                "and no space at either end"
            )
        if names.count(name) > 1:
            raise ConfigError(f"--served-model-name is {name!r} twice; expected different names")


def _explained(message: str, settings: dict[str, object]) -> str:
    """Return msgspec's `message` with the flag and its value in it."""
    expected, at, name = message.rstrip("`").partition(" - at `$.")
    if not at:
        return message
    return f"{_flag(name)} is {settings[name]!r}; {expected[:1].lower()}{expected[1:]}"


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def split_address(name: str, address: str) -> tuple[str, int]:
    """Return host and port of `address`.

    Raises:
        ConfigError: `address` is not HOST:PORT; the message names the setting `name`.
    """
    host, colon, port = address.rpartition(":")
    if not (colon and host and port.isdecimal() and int(port) < 1 << 16):
        raise ConfigError(f"--{name} is {address!r}, not HOST:PORT with a port from 0 to 65535")
    return host, int(port)
