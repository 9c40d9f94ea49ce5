"""The headings under which `loramux serve --help` groups its options."""

HEADINGS = {
    "Base model": (
        "model", "revision", "dtype", "device", "kernels", "enforce_eager", "quantization",
        "deterministic", "tensor_parallel", "threads", "max_context", "max_images",
        "generation_config", "served_model_name",
    ),
    "Batching": (
        "max_running", "max_batch_tokens", "max_stall", "max_bypassed", "speculative_tokens",
    ),
    "Memory": (
        "kv_memory", "block_size", "prefix_cache", "adapter_memory", "host_adapter_memory",
        "adapter_dtype", "eviction", "max_tenant_share",
    ),
    "Adapter sources": (
        "adapters", "adapters_interval", "strict_base", "adapter_templates", "hub_allow",
        "object_allow", "oci_allow", "resolve", "resolve_ttl", "trusted_signer", "replica_of",
        "replica_key", "replica_ca", "replica_cert", "replica_cert_key",
    ),
    "Uploads and storage": (
        "store", "catalog", "max_upload", "upload_idle_timeout", "min_upload_rate", "upload_expiry",
        "max_tenant_bytes", "max_tenant_adapters",
    ),
    "Network and access": (
        "listen", "metrics", "tls_cert", "tls_key", "tls_client_ca", "tls_client_domain",
        "insecure", "access", "ready_file", "keepalive", "max_connection_age",
    ),
    "Request limits": (
        "max_completions", "max_waiting", "max_waiting_tokens", "max_waiting_bytes",
        "max_image_bytes", "max_image_pixels", "max_lag", "default_timeout", "reader_timeout",
        "stream_interval",
    ),
    "Health and shutdown": ("watchdog", "quarantine_deaths", "probe_interval", "drain_timeout"),
    "Logging and tracing": ("log_format", "audit_log", "tracing_endpoint"),
}  # fmt: skip
"""Heading -> fields of `ServerConfig`, all of them, in the order of the help."""

METAVARS = {
    "model": "DIR|HUB-ID", "revision": "NAME", "device": "NAME",
    "generation_config": "auto|none|DIR", "served_model_name": "NAME", "max_tenant_share": "RATIO",
    "adapters": "DIR", "hub_allow": "PATTERN", "object_allow": "URI", "oci_allow": "PATTERN",
    "resolve": "TEMPLATE", "trusted_signer": "FILE", "replica_of": "HOST:PORT",
    "replica_key": "FILE", "replica_ca": "FILE", "replica_cert": "FILE",
    "replica_cert_key": "FILE", "store": "DIR", "catalog": "URL", "listen": "HOST:PORT",
    "metrics": "HOST:PORT", "tls_cert": "FILE", "tls_key": "FILE", "tls_client_ca": "FILE",
    "tls_client_domain": "DOMAIN", "access": "FILE", "ready_file": "FILE", "audit_log": "FILE",
    "tracing_endpoint": "URL",
}  # fmt: skip
"""Field -> placeholder for its value in the help; for other fields it follows from the type."""
