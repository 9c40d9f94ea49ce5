"""Ports, certificates and access."""

from typing import Annotated

from msgspec import Meta

from loramux_server.settings.storage import StorageSettings


class NetworkSettings(StorageSettings, frozen=True, kw_only=True):
    """Ports, certificates and access. Sizes are in bytes, times in seconds."""

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
