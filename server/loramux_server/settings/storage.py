"""Where adapters are stored, with size limits and quotas."""

from typing import Annotated

from msgspec import Meta

from loramux_server.settings.sources import SourceSettings


class StorageSettings(SourceSettings, frozen=True, kw_only=True):
    """Where adapters are stored, with limits and quotas. Sizes are in bytes, times in seconds."""

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
    upload_expiry: Annotated[
        float,
        Meta(
            gt=0,
            description="Delete an unfinished upload after this many seconds without activity.",
        ),
    ] = 86400.0
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
