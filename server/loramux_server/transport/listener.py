"""The gRPC port: bound at startup, opened once the model is loaded, drained at shutdown."""

import asyncio
import contextlib
import errno
import socket
from collections.abc import Callable, Iterable
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

from loramux_server.access.gate import Gate
from loramux_server.access.rules import check_rules
from loramux_server.access.tls import ServerTls
from loramux_server.config import ConfigError, split_address
from loramux_server.observe.call_log import CallLog
from loramux_server.transport.connection_limits import ConnectionLimits
from loramux_server.transport.rpc import Calls, Service, generic_handler
from loramux_server.transport.slow_readers import SlowReaderGuard

FLUSH_SECONDS = 1.0
"""Seconds at shutdown for responses that are complete but not sent yet."""


class Listener:
    """Owns the gRPC server: its port, its health status, and the calls in progress."""

    def __init__(
        self,
        address: str,
        *,
        call_log: CallLog,
        gate: Gate,
        reader_guard: SlowReaderGuard,
        limits: ConnectionLimits,
        drain_timeout: float,
        on_overtime: Callable[[], None] = lambda: None,
    ) -> None:
        """Initialize; connections are refused until `open`.

        Args:
            address: HOST:PORT; port 0 takes a free one.
            call_log: The outermost interceptor, which logs each call.
            gate: The next interceptor, which authorizes each call.
            reader_guard: How long streams wait for slow readers.
            limits: The limits of connections.
            drain_timeout: Seconds that calls have to finish at shutdown.
            on_overtime: Called when some have not; makes them fail.
        """
        self.address = address
        """HOST:PORT; once open, with the actual port."""
        self._drain_timeout = drain_timeout
        self._on_overtime = on_overtime
        self._calls = Calls()
        self._reader_guard = reader_guard
        self._health = health.aio.HealthServicer()
        self._service_names: list[str] = []
        self._is_ready = self._is_closing = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._grpc = grpc.aio.server(
            interceptors=[call_log, gate],
            options=[*limits.options(), ("grpc.so_reuseport", 0)],
        )

    async def open(self, services: Iterable[Service], tls: ServerTls | None) -> None:
        """Serve `services`, health checks and reflection, in plaintext without `tls`.

        Raises:
            ConfigError: The port cannot be bound.
            LookupError: A method has no access rule.
        """
        reflected = reflection_pb2.DESCRIPTOR.services_by_name.values()
        by_descriptor = {service.descriptor: service for service in services}
        check_rules([*by_descriptor, *health_pb2.DESCRIPTOR.services_by_name.values(), *reflected])
        self._grpc.add_generic_rpc_handlers(
            tuple(
                generic_handler(descriptor, service, self._calls, self._reader_guard)
                for descriptor, service in by_descriptor.items()
            )
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._grpc)
        names = [descriptor.full_name for descriptor in by_descriptor]
        reflection.enable_server_reflection(
            [*names, health.SERVICE_NAME, reflection.SERVICE_NAME], self._grpc
        )
        self._service_names = ["", *names]
        host, _ = split_address("listen", self.address)
        try:
            bound = (
                self._grpc.add_secure_port(self.address, tls.credentials())
                if tls
                else self._grpc.add_insecure_port(self.address)
            )
        except RuntimeError:
            raise ConfigError(f"--listen {self.address}: cannot listen on this address") from None
        self.address = f"{host}:{bound}"
        await self._grpc.start()

    @property
    def is_serving(self) -> bool:
        """Whether health checks report SERVING."""
        return self._is_ready and not self._is_closing

    def show_health(self, is_ready: bool) -> None:
        """Set the status that health checks report."""
        self._is_ready = is_ready
        kind = health_pb2.HealthCheckResponse
        status = kind.SERVING if is_ready else kind.NOT_SERVING
        for name in self._service_names:
            task = asyncio.create_task(self._health.set(name, status))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Refuse new calls, let those in progress finish, then stop."""
        self._is_closing = True
        await self._health.enter_graceful_shutdown()
        # gRPC's own drain would cancel calls that arrive meanwhile, and wait for health watchers.
        if not await self._calls.close(self._drain_timeout):
            self._on_overtime()
        await self._grpc.stop(FLUSH_SECONDS)


def held_port(address: str) -> contextlib.ExitStack:
    """Bind HOST:PORT without listening, so that no other server takes it, until that is closed.

    Raises:
        ConfigError: It is in use, or is not an address of this machine.
    """
    host, port = split_address("listen", address)
    try:
        # An IPv6 address has brackets where a port follows it.
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise ConfigError(f"--listen {address}: {error.strerror}") from None
    failures: list[OSError] = []
    with contextlib.ExitStack() as held:
        for family, kind, protocol, _, where in found:
            try:
                _bind(held.enter_context(socket.socket(family, kind, protocol)), where)
            except OSError as error:
                failures.append(error)
        if len(failures) == len(found):  # one address of a name is enough, as for gRPC
            raise ConfigError(f"--listen {address}: {failures[0].strerror}")
        return held.pop_all()


def _bind(holder: socket.socket, where: tuple[Any, ...]) -> None:
    try:
        holder.bind(where)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        # As for gRPC, connections of an earlier server in TIME_WAIT do not block the port.
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(where)
        # From now on others that set it are kept out, too.
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
