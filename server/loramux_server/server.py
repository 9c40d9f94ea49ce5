"""The server: builds its parts, serves, and shuts down in order."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from loramux_adapters.base_identity import BaseIdentity
from loramux_server.access.access_control import AccessControl
from loramux_server.access.exposure import check_exposure
from loramux_server.access.tls import ServerTls
from loramux_server.config import ServerConfig
from loramux_server.directory_scans import Changes, scan, watch
from loramux_server.engine_link.client import EngineClient
from loramux_server.engine_link.probe import Probe
from loramux_server.engine_link.quarantine import Quarantine
from loramux_server.lora.row_allocator import GRANULE
from loramux_server.metrics.endpoint import serve_metrics
from loramux_server.metrics.process_memory import show_memory
from loramux_server.metrics.series import Metrics
from loramux_server.observe.call_log import CallLog
from loramux_server.observe.tracing import Tracing, tracing_to
from loramux_server.opening import (
    bind_to_base,
    default_store,
    mark_replica,
    open_audit,
    open_registry,
    weights_of,
)
from loramux_server.origins import origins_of
from loramux_server.ready_file import write_ready_file
from loramux_server.replica.forwarding import Forwarding
from loramux_server.replica.mirror import Mirror
from loramux_server.served_names import named
from loramux_server.server_parts import Loaded, Opened, OpenedStore
from loramux_server.services.adapters.expiry import expire, keep_expiring
from loramux_server.services.adapters.resolving import Resolver
from loramux_server.services.build import Parts, build_services
from loramux_server.services.deadline import MAX_TIMEOUT
from loramux_server.services.generation.images import max_images
from loramux_server.statuses import Statuses
from loramux_server.store.directory import Directory
from loramux_server.store.served_base import ServedBase
from loramux_server.tasks import cancel_and_wait, in_background
from loramux_server.transport.connection_limits import ConnectionLimits, message_bytes
from loramux_server.transport.listener import Listener, held_port
from loramux_server.transport.lora_requests import LoraRequests
from loramux_server.transport.slow_readers import SlowReaderGuard
from loramux_server.wire.messages import Report
from loramux_server.wire.model_info import ModelInfo

_log = logging.getLogger(__name__)

EXPIRE_SECONDS = 60.0
"""Interval of the search for abandoned uploads."""
SWEEP_SECONDS = 1.0
"""Interval of the search for versions whose time to live is over."""


class Server:
    """A server from start to stop; use it in an `async with`."""

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        self._metrics = Metrics()
        self._engine = EngineClient(
            config.engine,
            on_report=self._on_report,
            on_ready=self._on_ready,
            watchdog=config.watchdog,
            quarantine=Quarantine(config.quarantine_deaths),
        )
        self._report_takers: list[Callable[[Report], None]] = [self._metrics.report]
        self._ready_takers: list[Callable[[bool], None]] = [self._metrics.engine_ready]
        """Called in this order with whether the engine is ready, whenever that changes."""
        self._is_serving: Callable[[], bool] = lambda: False
        self._exit = contextlib.AsyncExitStack()
        self._loop = asyncio.get_running_loop()
        self.grpc_address = ""
        """HOST:PORT of gRPC, once the server is ready."""
        self.metrics_address = ""
        """HOST:PORT of the metrics, once the server is ready."""

    @property
    def engine_pid(self) -> int | None:
        """Process id of the engine, while there is one."""
        return self._engine.process.pid

    async def __aenter__(self) -> "Server":
        """Start; requests are answered when this returns.

        Raises:
            ConfigError: The server cannot start with this config.
            StoreLockedError: Another server uses the store.
            CatalogAwayError: The database of the catalog does not answer.
        """
        try:
            opened = self._open()
            loaded = await self._load(opened)
            await self._begin(opened, loaded)
            await self._listen(opened, loaded)
        except BaseException:
            await self._exit.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._exit.aclose()

    async def wait_failed(self) -> None:
        """Wait until the engine cannot be kept alive."""
        await self._engine.process.wait_failed()

    def _open(self) -> Opened:
        """Do everything that can fail early, before the model is loaded."""
        config = self._config
        check_exposure(config, knows_callers=True)
        tls = ServerTls.of(config)
        origins = origins_of(config)
        store = self._open_store(Path(config.store)) if config.store else None
        show_memory(self._metrics.memory, lambda: self.engine_pid)
        self._metrics.quarantined.set_function(lambda: len(self._engine.quarantine.entries))
        self._metrics.tasks.set_function(lambda: len(asyncio.all_tasks(self._loop)))
        self.metrics_address = serve_metrics(
            config.metrics, self._metrics.registry, tls, self._exit
        )
        tracing: Tracing | None = None
        if config.tracing_endpoint:
            tracing = tracing_to(config.tracing_endpoint, self._metrics.spans)
            self._exit.push_async_callback(tracing.close)
        audit = open_audit(config)
        self._exit.callback(audit.close)
        port = self._exit.enter_context(held_port(config.listen))
        return Opened(tls, origins, store, tracing, audit, port)

    def _open_store(self, folder: Path) -> OpenedStore:
        registry = open_registry(folder, self._config)
        self._exit.callback(registry.close)
        access_control = AccessControl(registry.catalog, folder, self._config)
        self._metrics.registered.set_function(lambda: len(registry))
        self._metrics.leases.set_function(lambda: len(registry.leases))
        return OpenedStore(registry, access_control)

    async def _load(self, opened: Opened) -> Loaded:
        """Load the model, register the adapters of --adapters, and build the services."""
        config, origins = self._config, opened.origins
        self._exit.push_async_callback(self._engine.process.stop)
        model = await self._engine.process.start()
        store = opened.store or self._open_store(default_store(model))
        bind_to_base(store.registry, model)
        mark_replica(store.registry, is_replica=origins.primary is not None)
        base = replace(
            ServedBase.of(model, max_host_bytes=model.sizes.host_adapter_memory),
            identity=BaseIdentity(config.model),
            is_strict=config.strict_base,
            folder=weights_of(config.model) if origins.folder else None,
        )
        model = named(model, config)
        self._metrics.describe(model)
        changes = Changes(opened.audit)
        directory = Directory(origins.folder, store.registry, base, changes.record, origins.signers)
        if origins.primary is None:
            total = await scan(directory, settles=False)
            if origins.folder:
                changes.log_summary(total)
        services = build_services(
            Parts(
                registry=store.registry,
                engine=self._engine,
                model=model,
                base=base,
                origins=origins,
                metrics=self._metrics,
                quotas=store.access_control.quotas,
                audit=opened.audit,
                is_ready=lambda: self._is_serving(),
                config=config,
            )
        )
        mirror = None
        if origins.primary:
            is_up = self._metrics.primary_up.labels(origins.primary.target)
            mirror = Mirror(origins.primary, services.intake, is_up.set)
            self._exit.push_async_callback(origins.primary.close)
        return Loaded(model, store, directory, services, mirror)

    async def _begin(self, opened: Opened, loaded: Loaded) -> None:
        """Connect the services to events, and start the tasks that run until the server stops."""
        services, registry, model = loaded.services, loaded.store.registry, loaded.model
        await asyncio.to_thread(expire, registry)
        services.follow(registry, self._loop)
        registry.leases.on_gone = partial(self._gone, services.statuses)
        services.pins.resume()
        self._report_takers.append(services.report)
        self._ready_takers.append(services.engine_ready)
        self._metrics.registry.register(
            LoraRequests(
                services.statuses,
                registry.with_digest,
                max_adapters=min(model.max_running, model.adapter_rows // GRANULE),
            )
        )
        self._exit.callback(services.uploads.close)
        self._exit.callback(services.seals.close)
        self._exit.push_async_callback(services.prompts.close)
        self._run_in_background(services.uploads.expire(EXPIRE_SECONDS))
        self._run_in_background(keep_expiring(registry, SWEEP_SECONDS))
        self._run_in_background(services.lag.watch())
        if loaded.mirror:
            await loaded.mirror.begin()
            self._run_in_background(loaded.mirror.run())
        if opened.origins.folder and self._config.adapters_interval:
            self._run_in_background(watch(loaded.directory, self._config.adapters_interval))

    async def _listen(self, opened: Opened, loaded: Loaded) -> None:
        """Start to answer calls, and announce it."""
        config, services = self._config, loaded.services
        listener = self._listener(opened, loaded)
        answering = services.answering
        if services.resolver:
            # Closed after the listener, whose calls may wait for a fetch.
            self._exit.push_async_callback(services.resolver.close)
            answering = [services.resolver.over(service) for service in answering]
        self._run_in_background(loaded.store.access_control.watch(opened.tls))
        self._exit.push_async_callback(listener.close)
        # Closed before the listener, so that draining does not wait for calls that only watch.
        self._exit.callback(services.changes.close)
        if opened.origins.primary and loaded.mirror:
            forwarding = Forwarding(opened.origins.primary, loaded.mirror)
            answering = [forwarding.over(service) for service in answering]
        opened.port.close()
        await listener.open(answering, opened.tls)
        self._is_serving = lambda: listener.is_serving
        self.grpc_address = listener.address
        if config.ready_file:
            write_ready_file(
                config.ready_file, grpc=self.grpc_address, metrics=self.metrics_address
            )
        if config.probe_interval:
            self._probe(loaded.model, listener)
        self._ready_takers.append(listener.show_health)
        listener.show_health(self._engine.process.is_ready)
        if generation := loaded.model.generation:
            listed = ", ".join(f"{name} {value:g}" for name, value in generation.items())
            _log.info("sampling defaults from the generation config of the base: %s", listed)
        _log.info("serving %s on %s", loaded.model.name, self.grpc_address)

    def _listener(self, opened: Opened, loaded: Loaded) -> Listener:
        config = self._config
        return Listener(
            config.listen,
            call_log=CallLog(
                opened.audit, logs_calls=config.log_format == "json", tracing=opened.tracing
            ),
            gate=loaded.store.access_control.gate,
            reader_guard=SlowReaderGuard(config.reader_timeout, self._metrics.lost_readers.inc),
            limits=ConnectionLimits(
                keepalive=config.keepalive,
                max_age=config.max_connection_age,
                max_age_grace=MAX_TIMEOUT,
                max_message=message_bytes(max_images(loaded.model, config), config.max_image_bytes),
            ),
            drain_timeout=config.drain_timeout,
            on_overtime=partial(self._on_overtime, loaded.services.resolver),
        )

    def _probe(self, model: ModelInfo, listener: Listener) -> None:
        """Let health checks report, from now on, whether the engine generates tokens."""

        def show(is_well: bool) -> None:
            listener.show_health(is_well and self._engine.process.is_ready)

        def begin(is_ready: bool) -> None:
            if is_ready:
                probe.begin()

        probe = Probe(self._engine, model, interval=self._config.probe_interval, on_result=show)
        self._report_takers.append(probe.report)
        self._ready_takers.append(begin)
        self._run_in_background(probe.run())

    def _run_in_background(self, work: Coroutine[Any, Any, None]) -> None:
        """Run `work` in the background until the server stops."""
        self._exit.push_async_callback(cancel_and_wait, in_background(work))

    def _on_overtime(self, resolver: Resolver | None) -> None:
        if resolver:
            resolver.give_up()
        self._engine.close()

    def _on_report(self, report: Report) -> None:
        for take in self._report_takers:
            take(report)

    def _on_ready(self, is_ready: bool) -> None:
        for take in self._ready_takers:
            take(is_ready)

    def _gone(self, statuses: Statuses, digest: str) -> None:
        """Make the engine drop an adapter that no name refers to any more. Thread-safe."""

        def drop() -> None:
            statuses.forget(digest, is_leaving=self._engine.drop(digest))

        self._loop.call_soon_threadsafe(drop)
