"""Whether a server makes traces, and with what."""

from collections.abc import Iterable
from typing import Protocol

from prometheus_client import Counter

from loramux_adapters.extras import install_command
from loramux_server.config import ConfigError
from loramux_server.observe.spans import CallSpan


class Tracing(Protocol):
    """What makes the spans of calls."""

    def call(
        self, method: str, metadata: Iterable[tuple[str, str | bytes]], begin: float
    ) -> CallSpan:
        """Return the span of a call of `method` that began at `begin` of the monotonic clock."""

    async def close(self) -> None:
        """Send what is left of them."""


def tracing_to(endpoint: str, spans: Counter) -> Tracing:
    """Return what sends spans to the collector at `endpoint`, a URL.

    Args:
        endpoint: Where the collector is.
        spans: Counts them by what became of them.

    Raises:
        ConfigError: OpenTelemetry is not installed, or something of its environment is wrong.
    """
    try:
        # Here: who wants no traces need not have it, and never loads it.
        from loramux_server.observe.telemetry import Telemetry, exporter_to
    except ImportError:
        raise ConfigError(
            f"--tracing-endpoint needs OpenTelemetry: {install_command('tracing')}"
        ) from None
    return Telemetry(exporter_to(endpoint), spans)
