"""A server: everything is built, serves, and ends in order."""

import asyncio
import contextlib
import logging
from functools import partial
from pathlib import Path

from loramux_server.access.entrance import Entrance
from loramux_server.access.exposure import check_exposure
from loramux_server.access.tls import ServerTls
from loramux_server.config import ServerConfig
from loramux_server.engine_link.client import EngineClient
from loramux_server.engine_link.probe import Probe
from loramux_server.engine_link.quarantine import Quarantine
from loramux_server.images.messages import Setup
from loramux_server.images.preparer import Preparer
from loramux_server.lora.row_allocator import GRANULE
from loramux_server.metrics.endpoint import serve_metrics
from loramux_server.metrics.process_memory import show_memory
from loramux_server.metrics.series import Metrics
from loramux_server.observe.acts import DIRECTORY_ADD, DIRECTORY_REMOVE
from loramux_server.observe.audit import Audit
from loramux_server.observe.call_log import CallLog
from loramux_server.observe.tracing import Tracing, tracing_to
from loramux_server.opening import (
    adapters_folder,
    claim,
    default_store,
    open_audit,
    open_registry,
    sources_of,
)
from loramux_server.ready_file import write_ready_file
from loramux_server.services.adapters.expiry import expire, keep_expiring
from loramux_server.services.build import Services, build_services
from loramux_server.services.deadline import MAX_TIMEOUT
from loramux_server.services.generation.images import max_images
from loramux_server.store.check import ServedBase
from loramux_server.store.directory import Directory
from loramux_server.store.record import AdapterRecord
from loramux_server.store.registry import Registry
from loramux_server.store.writing import ADDED
from loramux_server.tasks import ended
from loramux_server.transport.connection_limits import ConnectionLimits, message_bytes
from loramux_server.transport.listener import Listener, held_port
from loramux_server.transport.lora_requests import LoraRequests
from loramux_server.transport.readers import Readers
from loramux_server.watching import look, watch
from loramux_server.wire.messages import Report
from loramux_server.wire.model_info import ModelInfo

_log = logging.getLogger(__name__)

EXPIRE_SECONDS = 60.0
"""How often old uploads are looked for."""
SWEEP_SECONDS = 1.0
"""How often versions are looked for whose time is over."""


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
        self._probe: Probe | None = None
        self._listener: Listener | None = None
        self._entrance: Entrance | None = None
        self._services: Services | None = None
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
            ConfigError: Something in the config keeps the server from starting.
            StoreLockedError: Another server uses the store.
        """
        try:
            await self._start()
        except BaseException:
            await self._exit.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._exit.aclose()

    async def wait_failed(self) -> None:
        """Return when the engine cannot be kept alive."""
        await self._engine.process.wait_failed()

    async def _start(self) -> None:
        # What can fail at once does so before the model is loaded.
        check_exposure(self._config, knows_callers=True)
        tls = ServerTls.of(self._config)
        adapters = adapters_folder(self._config)
        sources = sources_of(self._config)
        registry = self._open_registry(Path(self._config.store)) if self._config.store else None
        self.metrics_address = serve_metrics(
            self._config.metrics, self._metrics.registry, tls, self._exit
        )
        tracing: Tracing | None = None
        if self._config.tracing_endpoint:
            tracing = tracing_to(self._config.tracing_endpoint, self._metrics.spans)
            self._exit.push_async_callback(tracing.close)
        audit = open_audit(self._config)
        self._exit.callback(audit.close)
        self._exit.enter_context(held_port(self._config.listen))
        self._exit.push_async_callback(self._engine.process.stop)
        model = await self._engine.process.start()
        self._metrics.describe(model)
        if registry is None:
            registry = self._open_registry(default_store(model))
        claim(registry, model)
        base = ServedBase.of(model, max_host_bytes=model.sizes.host_adapter_memory)
        directory = Directory(adapters, registry, base, partial(_write_down, audit))
        await look(directory, settles=False)
        assert self._entrance is not None
        services = build_services(
            registry=registry,
            engine=self._engine,
            model=model,
            base=base,
            sources=sources,
            metrics=self._metrics,
            quotas=self._entrance.quotas,
            audit=audit,
            is_ready=lambda: self._listener is not None and self._listener.is_serving,
            preparer=self._preparer(model),
            config=self._config,
        )
        await asyncio.to_thread(expire, registry)
        services.follow(registry, self._loop)
        services.pins.resume()
        self._services = services
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
        for expiring in (
            services.uploads.expire(EXPIRE_SECONDS),
            keep_expiring(registry, SWEEP_SECONDS),
            services.lag.watch(),
        ):
            self._exit.push_async_callback(ended, asyncio.create_task(expiring))
        if adapters and self._config.adapters_interval:
            self._exit.push_async_callback(
                ended, asyncio.create_task(watch(directory, self._config.adapters_interval))
            )
        listener = Listener(
            self._config.listen,
            call_log=CallLog(audit, logs_calls=self._config.log_format == "json", tracing=tracing),
            gate=self._entrance.gate,
            readers=Readers(self._config.reader_timeout, self._metrics.lost_readers.inc),
            limits=ConnectionLimits(
                keepalive=self._config.keepalive,
                max_age=self._config.max_connection_age,
                max_age_grace=MAX_TIMEOUT,
                max_message=message_bytes(
                    max_images(model, self._config), self._config.max_image_bytes
                ),
            ),
            drain_timeout=self._config.drain_timeout,
            on_overtime=self._engine.close,
        )
        self._exit.push_async_callback(ended, asyncio.create_task(self._entrance.watch(tls)))
        self._exit.push_async_callback(listener.close)
        # Before that, so that nobody waits for who only watches.
        self._exit.callback(services.changes.close)
        await listener.open(services.by_descriptor, tls)
        self._listener = listener
        self.grpc_address = listener.address
        if self._config.ready_file:
            write_ready_file(
                self._config.ready_file, grpc=self.grpc_address, metrics=self.metrics_address
            )
        if interval := self._config.probe_interval:
            self._probe = Probe(self._engine, model, interval=interval, on_result=self._show_health)
            self._exit.callback(asyncio.create_task(self._probe.run()).cancel)
        listener.show_health(self._engine.process.is_ready)
        _log.info("serving %s on %s", model.name, self.grpc_address)

    def _open_registry(self, folder: Path) -> Registry:
        registry = open_registry(folder, self._config)
        self._exit.callback(registry.close)
        self._entrance = Entrance(registry.catalog, folder, self._config)
        registry.leases.on_gone = self._on_gone
        show_memory(self._metrics.memory, lambda: self.engine_pid)
        self._metrics.quarantined.set_function(lambda: len(self._engine.quarantine.entries))
        self._metrics.registered.set_function(lambda: len(registry))
        self._metrics.leases.set_function(lambda: len(registry.leases))
        self._metrics.tasks.set_function(lambda: len(asyncio.all_tasks(self._loop)))
        return registry

    def _preparer(self, model: ModelInfo) -> Preparer | None:
        """Return what prepares images for `model`, if any are taken."""
        if not max_images(model, self._config):
            return None
        return Preparer(Setup(self._config.model, self._config.max_image_pixels))

    def _show_health(self, is_well: bool) -> None:
        if self._listener:
            self._listener.show_health(is_well and self._engine.process.is_ready)

    def _on_ready(self, is_ready: bool) -> None:
        self._metrics.engine_ready(is_ready)
        if self._probe and is_ready:
            self._probe.begin()
        if self._services:
            if is_ready:
                self._services.pins.resume()
            else:
                self._services.statuses.engine_died()
        self._show_health(is_ready)

    def _on_report(self, report: Report) -> None:
        self._metrics.report(report)
        if self._probe:
            self._probe.report(report)
        if self._services:
            self._services.report(report)

    def _on_gone(self, digest: str) -> None:
        self._loop.call_soon_threadsafe(self._drop, digest)

    def _drop(self, digest: str) -> None:
        is_leaving = self._engine.drop(digest)
        if self._services:
            self._services.statuses.forget(digest, is_leaving=is_leaving)


def _write_down(audit: Audit, what: str, record: AdapterRecord) -> None:
    """Tell the audit log what the directory brought or took away."""
    act = DIRECTORY_ADD if what == ADDED else DIRECTORY_REMOVE
    audit.write(act, tenant=record.tenant, adapter=str(record), digest=record.digest, outcome="OK")
