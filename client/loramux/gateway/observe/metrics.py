"""Every Prometheus metric of the gateway, in one list."""

import asyncio

import grpc
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

LATENCY = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
LAG = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
LAG_INTERVAL = 0.25
"""Seconds between two measurements of the event loop's lag."""


class GatewayMetrics:
    """The gateway's metrics. All labels are bounded: nothing that a caller sends becomes one."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        registry = self.registry
        self.requests = Counter(
            "loramux_gateway_requests",
            "HTTP requests finished, by route template, method and status. Status 499: the client "
            "disconnected before the response began.",
            ("route", "method", "status"), registry=registry,
        )  # fmt: skip
        self.duration = Histogram(
            "loramux_gateway_request_seconds",
            "Time from arrival of a request's head to the end of its response.",
            ("route",), buckets=LATENCY, registry=registry,
        )  # fmt: skip
        self.first_byte = Histogram(
            "loramux_gateway_time_to_first_byte_seconds",
            "Time from arrival of a request's head to the first event of its stream.",
            ("route",), buckets=LATENCY, registry=registry,
        )  # fmt: skip
        self.in_progress = Gauge(
            "loramux_gateway_requests_in_progress", "Requests in progress.", registry=registry
        )
        self.connections = Gauge(
            "loramux_gateway_connections", "Open HTTP connections.", registry=registry
        )
        self.rejected = Counter(
            "loramux_gateway_requests_rejected",
            "Requests rejected before routing, by status: invalid HTTP (400), head too large "
            "(431), too many connections (503).",
            ("status",), registry=registry,
        )  # fmt: skip
        self.upstream = Counter(
            "loramux_gateway_upstream_calls",
            "Finished gRPC calls to servers, by method and gRPC status; a call counts once, "
            "regardless of retries.",
            ("method", "status"), registry=registry,
        )  # fmt: skip
        self.lag = Histogram(
            "loramux_gateway_loop_lag_seconds",
            f"Lag of the event loop, measured every {LAG_INTERVAL:g} s.",
            buckets=LAG, registry=registry,
        )  # fmt: skip

    def call_ended(self, method: str, code: grpc.StatusCode) -> None:
        """Count a finished gRPC call; `method` is `PACKAGE.SERVICE/METHOD`."""
        self.upstream.labels(method, code.name).inc()

    def rejected_with(self, status: int) -> None:
        """Count a request that was answered before it reached a route."""
        self.rejected.labels(status).inc()

    async def watch_lag(self) -> None:
        """Measure the lag of the event loop until the task is cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + LAG_INTERVAL
            await asyncio.sleep(LAG_INTERVAL)
            self.lag.observe(max(0.0, loop.time() - due))
