"""Where adapters come from, and which are accepted."""

from typing import Annotated

from msgspec import Meta

from loramux_server.wire.engine_config import EngineConfig


class SourceSettings(EngineConfig, frozen=True, kw_only=True):
    """Where adapters come from, and which are accepted. Sizes are in bytes, times in seconds."""

    adapters: Annotated[
        str | None,
        Meta(
            description="Directory to serve adapters from: PEFT folders and packages, each "
            "named after its file or folder."
        ),
    ] = None
    adapters_interval: Annotated[
        float,
        Meta(
            ge=0,
            description="Seconds between scans of --adapters for new, changed and removed "
            "adapters; 0 scans at startup only.",
        ),
    ] = 5.0
    adapter_templates: Annotated[
        bool,
        Meta(
            description="Format chats with the chat template in an adapter's package, where it "
            "has one; --no-adapter-templates refuses chats with such an adapter."
        ),
    ] = True
    strict_base: Annotated[
        bool,
        Meta(
            description="Refuse adapters that were made for another base model, by the name in "
            "their config or the fingerprint in their manifest; otherwise only warn."
        ),
    ] = False
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
            "/mnt/adapters/{name}. Repeatable; the first that has it is used."
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
            description="PEM file with an Ed25519 public key; packages from any source must be "
            "signed with one of these keys. Repeatable."
        ),
    ] = ()
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
