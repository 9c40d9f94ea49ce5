"""What a connection may ask of the server, and when it ends. gRPC itself sees to all of it."""

from dataclasses import dataclass

MESSAGE_BYTES = 4 << 20
"""Most bytes of a message without images."""
LARGE_IMAGES = 3
"""For so many images of the largest size there is room in a message beside that."""


def message_bytes(max_images: int, max_image_bytes: int) -> int:
    """Return the most bytes of a message with `max_images` of `max_image_bytes` each at most."""
    return MESSAGE_BYTES + min(max_images, LARGE_IMAGES) * max_image_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionLimits:
    """The settings of every connection. Times are in seconds."""

    keepalive: float = 60.0
    """Time without a byte after which a client is asked for a sign of life."""
    keepalive_timeout: float = 20.0
    """How long that may take; then the connection is closed, and its calls end."""
    min_ping_interval: float = 2.0
    """How often a client may ask that of the server, with or without calls under way: many do every
    five or ten seconds. The third time too early, it is sent away, and its calls end."""
    max_idle: float = 300.0
    """How long a connection without calls is kept."""
    max_age: float = 1800.0
    """How long new calls come on one connection, so that clients spread over all servers of a
    name; 0 means any time."""
    max_age_grace: float = 3600.0
    """How long calls may take that began before that."""
    max_handshake: float = 10.0
    """Time from connecting to the first settings of HTTP/2, TLS included."""
    max_connections: int = 4096
    """Connections at once; others are closed at once."""
    max_streams: int = 1024
    """Calls at once on one connection; a client keeps others back until one has ended."""
    max_message: int = MESSAGE_BYTES
    """Bytes of a message from a client."""
    max_metadata: int = 8 << 10
    """Bytes of the metadata of a call."""

    def options(self) -> list[tuple[str, int]]:
        """Return the channel arguments of gRPC that say so."""
        options = [
            ("grpc.keepalive_time_ms", _ms(self.keepalive)),
            ("grpc.keepalive_timeout_ms", _ms(self.keepalive_timeout)),
            # The former has no effect of its own where this is a minute, as it is by default.
            ("grpc.http2.ping_timeout_ms", _ms(self.keepalive_timeout)),
            # Else gRPC lets a client without calls ask once in two hours.
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.min_ping_interval_without_data_ms", _ms(self.min_ping_interval)),
            ("grpc.http2.max_ping_strikes", 2),
            ("grpc.max_connection_idle_ms", _ms(self.max_idle)),
            ("grpc.server_handshake_timeout_ms", _ms(self.max_handshake)),
            ("grpc.max_allowed_incoming_connections", self.max_connections),
            ("grpc.max_concurrent_streams", self.max_streams),
            ("grpc.max_receive_message_length", self.max_message),
            # Soft = hard: what is too large is refused each time, not at random.
            ("grpc.max_metadata_size", self.max_metadata),
            ("grpc.absolute_max_metadata_size", self.max_metadata),
            # Identity only: an inflated message has no bound.
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
