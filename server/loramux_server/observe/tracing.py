"""Tracing, if it is enabled and OpenTelemetry is installed."""

from collections.abc import Iterable
from typing import Protocol

from prometheus_client import Counter

from loramux_adapters.extras import install_command
from loramux_server.config import ConfigError
from loramux_server.observe.spans import CallSpan


class Tracing(Protocol):
    """Creates the spans of calls."""

    def call(
        self, method: str, metadata: Iterable[tuple[str, str | bytes]], begin: float
    ) -> CallSpan:
        """Return the span of a call of `method`; `begin` is a time of the monotonic clock."""

    async def close(self) -> None:
        """Export the remaining spans."""


def tracing_to(endpoint: str, spans: Counter) -> Tracing:
    """Return a `Tracing` that exports spans to a collector.

    Args:
        endpoint: The collector's URL.
        spans: Counts spans by outcome.

    Raises:
        ConfigError: OpenTelemetry is not installed, or a setting in its environment is invalid.
    """
    try:
        # Imported here, since OpenTelemetry is optional.
        from loramux_server.observe.telemetry import Telemetry, exporter_to
    except ImportError:
        raise ConfigError(
            f"--tracing-endpoint needs OpenTelemetry: {install_command('tracing')}"
        ) from None
    return Telemetry(exporter_to(endpoint), spans)
