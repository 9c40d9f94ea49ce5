"""The gRPC port: held from the start, opened when there is a model, drained at the end."""

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterable, Iterator

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

from loramux_server.access.gate import Gate
from loramux_server.access.rules import check_rules
from loramux_server.access.tls import ServerTls
from loramux_server.config import ConfigError, split_address
from loramux_server.observe.call_log import CallLog
from loramux_server.transport.connection_limits import ConnectionLimits
from loramux_server.transport.readers import Readers
from loramux_server.transport.rpc import Calls, Service, generic_handler

LAST_WORDS = 1.0
"""Seconds for answers that are made but not yet sent, at the end."""


class Listener:
    """Owns the gRPC server: its port, its health, and the calls under way."""

    def __init__(
        self,
        address: str,
        *,
        call_log: CallLog,
        gate: Gate,
        readers: Readers,
        limits: ConnectionLimits,
        drain_timeout: float,
        on_overtime: Callable[[], None] = lambda: None,
    ) -> None:
        """Prepare; who connects is refused until `open`.

        Args:
            address: HOST:PORT; port 0 takes a free one.
            call_log: What sees each call from begin to end.
            gate: What every call passes next.
            readers: How long streams wait for who reads them.
            limits: What a connection may ask.
            drain_timeout: Seconds that calls get to finish at the end.
            on_overtime: Called when they did not; lets them fail.
        """
        self.address = address
        """HOST:PORT, with the port that was taken once it is open."""
        self._drain_timeout = drain_timeout
        self._on_overtime = on_overtime
        self._calls = Calls()
        self._readers = readers
        self._health = health.aio.HealthServicer()
        self._service_names: list[str] = []
        self._is_ready = self._is_closing = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._grpc = grpc.aio.server(
            interceptors=[call_log, gate],
            options=[*limits.options(), ("grpc.so_reuseport", 0)],
        )

    async def open(self, services: Iterable[Service], tls: ServerTls | None) -> None:
        """Answer calls to `services`, health checks and reflection, in plaintext without `tls`.

        Raises:
            ConfigError: The port cannot be had.
            LookupError: Nobody decided who may call one of the methods.
        """
        reflected = reflection_pb2.DESCRIPTOR.services_by_name.values()
        by_descriptor = {service.descriptor: service for service in services}
        check_rules([*by_descriptor, *health_pb2.DESCRIPTOR.services_by_name.values(), *reflected])
        self._grpc.add_generic_rpc_handlers(
            tuple(
                generic_handler(descriptor, service, self._calls, self._readers)
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
            raise ConfigError(f"--listen {self.address}: cannot listen there") from None
        self.address = f"{host}:{bound}"
        await self._grpc.start()

    @property
    def is_serving(self) -> bool:
        """What health checks are answered."""
        return self._is_ready and not self._is_closing

    def show_health(self, is_ready: bool) -> None:
        """Answer health checks so from now on."""
        self._is_ready = is_ready
        kind = health_pb2.HealthCheckResponse
        status = kind.SERVING if is_ready else kind.NOT_SERVING
        for name in self._service_names:
            task = asyncio.create_task(self._health.set(name, status))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Refuse new calls, let those under way finish, then stop."""
        self._is_closing = True
        await self._health.enter_graceful_shutdown()
        # gRPC itself would cancel calls that come meanwhile, and wait for who watches the health.
        if not await self._calls.close(self._drain_timeout):
            self._on_overtime()
        await self._grpc.stop(LAST_WORDS)


@contextlib.contextmanager
def held_port(address: str) -> Iterator[None]:
    """Keep HOST:PORT for the block without listening: others cannot have it, gRPC still can.

    Raises:
        ConfigError: Somebody has it already, or it is none of this machine.
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
                holder = held.enter_context(socket.socket(family, kind, protocol))
                # As gRPC does, so that connections of a server before this one do not matter.
                holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                holder.bind(where)
            except OSError as error:
                failures.append(error)
        if len(failures) == len(found):  # one of the addresses of a name is enough, as for gRPC
            raise ConfigError(f"--listen {address}: {failures[0].strerror}")
        yield
