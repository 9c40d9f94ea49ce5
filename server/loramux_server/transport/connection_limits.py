"""Limits of connections, all enforced by gRPC itself."""

from dataclasses import dataclass

MESSAGE_BYTES = 4 << 20
"""Size limit of a message without images."""
LARGE_IMAGES = 3
"""Images of maximum size that fit in a message in addition to that."""


def message_bytes(max_images: int, max_image_bytes: int) -> int:
    """Return the size limit of a message with up to `max_images` of `max_image_bytes` each."""
    return MESSAGE_BYTES + min(max_images, LARGE_IMAGES) * max_image_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionLimits:
    """The limits of every connection. Times are in seconds."""

    keepalive: float = 60.0
    """Time without traffic after which the server sends a keepalive ping."""
    keepalive_timeout: float = 20.0
    """How long the reply may take; then the connection is closed, and its calls end."""
    min_ping_interval: float = 2.0
    """Minimum interval of a client's own pings, with or without calls in progress; many clients
    ping every five or ten seconds. The third violation closes the connection and ends its calls."""
    max_idle: float = 300.0
    """How long a connection without calls is kept."""
    max_age: float = 1800.0
    """How long a connection accepts new calls, so that clients spread over all servers behind a DNS
    name; 0 means no limit."""
    max_age_grace: float = 3600.0
    """How long calls in progress may continue after that."""
    max_handshake: float = 10.0
    """Time from connecting to the first HTTP/2 SETTINGS frame, TLS included."""
    max_connections: int = 4096
    """Simultaneous connections; further ones are closed at once."""
    max_streams: int = 1024
    """Concurrent calls on one connection; clients queue further ones."""
    max_message: int = MESSAGE_BYTES
    """Bytes of a message from a client."""
    max_metadata: int = 8 << 10
    """Bytes of the metadata of a call."""

    def options(self) -> list[tuple[str, int]]:
        """Return these limits as gRPC channel arguments."""
        options = [
            ("grpc.keepalive_time_ms", _ms(self.keepalive)),
            ("grpc.keepalive_timeout_ms", _ms(self.keepalive_timeout)),
            # Without this, whose default is a minute, the previous one has no effect.
            ("grpc.http2.ping_timeout_ms", _ms(self.keepalive_timeout)),
            # Otherwise gRPC allows a client without calls one ping in two hours.
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.min_ping_interval_without_data_ms", _ms(self.min_ping_interval)),
            ("grpc.http2.max_ping_strikes", 2),
            ("grpc.max_connection_idle_ms", _ms(self.max_idle)),
            ("grpc.server_handshake_timeout_ms", _ms(self.max_handshake)),
            ("grpc.max_allowed_incoming_connections", self.max_connections),
            ("grpc.max_concurrent_streams", self.max_streams),
            ("grpc.max_receive_message_length", self.max_message),
            # Soft = hard: otherwise metadata between the two limits is refused at random.
            ("grpc.max_metadata_size", self.max_metadata),
            ("grpc.absolute_max_metadata_size", self.max_metadata),
            # Identity only: the size of a decompressed message would be unbounded.
            ("grpc.compression_enabled_algorithms_bitset", 1),
        ]
        if self.max_age:
            options += [
                ("grpc.max_connection_age_ms", _ms(self.max_age)),
                ("grpc.max_connection_age_grace_ms", _ms(self.max_age_grace)),
            ]
        return options


def _ms(seconds: float) -> int:
    return round(1000 * seconds)
