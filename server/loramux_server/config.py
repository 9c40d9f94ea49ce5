"""Everything that can be set about a server. Frozen; the command-line flags are these fields."""

import re
from typing import Annotated

import msgspec
from msgspec import Meta

from loramux_server.wire.engine_config import EngineConfig

_DOMAIN = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?")
_ENDPOINT = re.compile(r"https?://[^\s/?#]+")
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

    adapters: Annotated[
        str | None,
        Meta(description="Directory of PEFT folders and packages, each named after its file."),
    ] = None
    adapters_interval: Annotated[
        float,
        Meta(
            ge=0,
            description="Seconds between looks at --adapters for what is new, changed or gone; "
            "0 looks only at the start.",
        ),
    ] = 5.0
    replica_of: Annotated[
        str | None,
        Meta(
            description="HOST:PORT of the server whose adapters and aliases this one has, too; it "
            "passes on what would change them."
        ),
    ] = None
    replica_key: Annotated[
        str | None, Meta(description="File with a key of an administrator of that server.")
    ] = None
    replica_ca: Annotated[
        str | None, Meta(description="Authorities that sign its certificate, PEM.")
    ] = None
    adapter_templates: Annotated[
        bool,
        Meta(
            description="Render conversations by the chat template of an adapter's package, where "
            "it has one; otherwise they are refused for such an adapter."
        ),
    ] = True
    store: Annotated[
        str | None,
        Meta(
            description="Directory for uploaded adapters; by default one for each base model "
            "below the user's data directory."
        ),
    ] = None
    catalog: Annotated[
        str | None,
        Meta(
            description="SQLAlchemy URL of the database for names and versions, such as "
            "postgresql+psycopg://user@host/name; by default SQLite in the store."
        ),
    ] = None
    listen: Annotated[str, Meta(description="HOST:PORT for gRPC; port 0 takes a free one.")] = (
        "127.0.0.1:50051"
    )
    metrics: Annotated[
        str,
        Meta(
            description="HOST:PORT for Prometheus; port 0 takes a free one. Where other machines "
            "can reach it, it speaks HTTPS, to clients with a certificate of --tls-client-ca."
        ),
    ] = "127.0.0.1:9400"
    tls_cert: Annotated[
        str | None,
        Meta(description="PEM file of the server's certificate chain; reread when it changes."),
    ] = None
    tls_key: Annotated[
        str | None,
        Meta(description="PEM file of its private key; reread when it changes."),
    ] = None
    tls_client_ca: Annotated[
        str | None,
        Meta(
            description="PEM file of authorities, one of which has to have signed the certificate "
            "of every client."
        ),
    ] = None
    tls_client_domain: Annotated[
        str | None,
        Meta(
            description="Domain whose client certificates stand for keys: they name the caller as "
            "spiffe://DOMAIN/tenant/TENANT/role/ROLE.",
        ),
    ] = None
    insecure: Annotated[
        bool,
        Meta(
            description="Dangerous: lets other machines connect without TLS, and as administrators "
            "as long as there is no key. Only where a proxy or the network keeps others out."
        ),
    ] = False
    access: Annotated[
        str | None,
        Meta(
            description="TOML file that lists keys and tenants beside those of the store; reread "
            "when it changes."
        ),
    ] = None
    ready_file: Annotated[
        str | None,
        Meta(description="File that receives the addresses, as JSON, once requests are answered."),
    ] = None
    max_upload: Annotated[
        int,
        Meta(
            ge=1,
            description="Largest package that an upload may bring.",
            extra_json_schema={"format": "bytes"},
        ),
    ] = 1 << 30
    upload_idle_timeout: Annotated[
        float, Meta(gt=0, description="Longest wait in seconds for the next piece of an upload.")
    ] = 30.0
    min_upload_rate: Annotated[
        int,
        Meta(
            ge=0,
            description="Bytes per second that an upload has to bring, over each "
            "--upload-idle-timeout; 0 means any.",
            extra_json_schema={"format": "bytes"},
        ),
    ] = 16 << 10
    max_tenant_bytes: Annotated[
        int,
        Meta(
            ge=0,
            description="Most bytes of packages that one tenant may store, those on their way "
            "included; 0 means any.",
            extra_json_schema={"format": "bytes"},
        ),
    ] = 0
    max_tenant_adapters: Annotated[
        int, Meta(ge=0, description="Most adapters that one tenant may store; 0 means any.")
    ] = 0
    hub_allow: Annotated[
        tuple[str, ...],
        Meta(
            description="Repositories of the Hugging Face Hub that may be imported, such as "
            "ORG/NAME or ORG/*; can be given several times. By default none."
        ),
    ] = ()
    object_allow: Annotated[
        tuple[str, ...],
        Meta(
            description="Beginnings of URIs of s3://, gs:// or az:// that may be imported, such as "
            "s3://BUCKET/adapters; can be given several times. By default none."
        ),
    ] = ()
    oci_allow: Annotated[
        tuple[str, ...],
        Meta(
            description="Repositories of OCI registries that may be imported, such as "
            "ghcr.io/ORG/*; can be given several times. By default none."
        ),
    ] = ()
    log_format: Annotated[
        str,
        Meta(
            pattern="^(text|json)$",
            description="How the log is written: text, or json, where each call has a line, too.",
        ),
    ] = "text"
    audit_log: Annotated[
        str | None,
        Meta(
            description="File that gets a line of JSON for each act that changes something: who, "
            "what, when, and what came of it. It is written before the caller is answered."
        ),
    ] = None
    tracing_endpoint: Annotated[
        str | None,
        Meta(
            description="URL of an OpenTelemetry collector that gets traces, such as "
            "http://127.0.0.1:4317; the OTEL_… variables say the rest. By default there are none.",
        ),
    ] = None
    upload_expiry: Annotated[
        float,
        Meta(
            gt=0, description="Seconds after which an upload is deleted that nobody goes on with."
        ),
    ] = 86400.0
    default_timeout: Annotated[
        float, Meta(gt=0, description="Seconds for a call that has no deadline.")
    ] = 600.0
    max_waiting_tokens: Annotated[
        int,
        Meta(
            ge=1,
            description="Most prompt tokens of requests in the queue, all together; a prompt that "
            "is longer waits alone.",
        ),
    ] = 1 << 18
    max_waiting_bytes: Annotated[
        int,
        Meta(
            ge=1,
            description="Most bytes of requests in the queue, as they came, and of their images as "
            "the model takes them.",
            extra_json_schema={"format": "bytes"},
        ),
    ] = 256 << 20
    max_image_bytes: Annotated[
        int,
        Meta(
            ge=1,
            description="Largest file of an image. A request may bring as many bytes as three of "
            "the largest, and 4M for all else.",
            extra_json_schema={"format": "bytes"},
        ),
    ] = 8 << 20
    max_image_pixels: Annotated[
        int, Meta(ge=1, description="Most pixels of an image, before the model's own limit.")
    ] = 1 << 24
    max_lag: Annotated[
        float,
        Meta(
            ge=0,
            description="Most seconds by which the frontend may run late, three looks in a row; "
            "while it is later than that, requests are refused. 0 means no limit.",
        ),
    ] = 1.0
    keepalive: Annotated[
        float,
        Meta(
            gt=0,
            description="Seconds without a byte after which a client has to give a sign of life.",
        ),
    ] = 60.0
    max_connection_age: Annotated[
        float,
        Meta(
            ge=0,
            description="Seconds after which a client has to connect again, so that clients spread "
            "over all servers behind a name; its calls under way go on. 0 means never.",
        ),
    ] = 1800.0
    stream_interval: Annotated[
        int,
        Meta(
            ge=1,
            le=256,
            description="Tokens of a completion that are sent together; the first goes at once.",
        ),
    ] = 1
    reader_timeout: Annotated[
        float,
        Meta(
            gt=0,
            description="Longest wait in seconds for the reader of a stream to take what was sent "
            "to it; then the stream ends.",
        ),
    ] = 10.0
    watchdog: Annotated[
        float,
        Meta(
            ge=0,
            description="Seconds without a sign of life after which the engine is replaced; more "
            "where its steps have been slow. 0 means never.",
        ),
    ] = 30.0
    quarantine_deaths: Annotated[
        int,
        Meta(
            ge=0,
            description="A request or adapter that so many deaths of the engine in a row had under "
            "way is refused until an operator clears it; 0 means never.",
        ),
    ] = 2
    probe_interval: Annotated[
        float,
        Meta(
            ge=0,
            description="Seconds without work after which a token is made to see whether the "
            "engine still can, which is what health checks tell; 0 means never.",
        ),
    ] = 5.0
    drain_timeout: Annotated[
        float, Meta(ge=0, description="Seconds that requests get to finish after SIGTERM.")
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
    endpoint = config.tracing_endpoint
    if endpoint is not None and not _ENDPOINT.match(endpoint):
        raise ConfigError(
            f"--tracing-endpoint is {endpoint!r}; expected a URL such as http://127.0.0.1:4317"
        )
    for name, needed in _TOGETHER:
        if getattr(config, name) is not None and getattr(config, needed) is None:
            raise ConfigError(f"{_flag(name)} is set; set {_flag(needed)}, too")
    return config


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
