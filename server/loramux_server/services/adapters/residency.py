"""ResidencyService: pinning and prefetching of adapters."""

from loramux.errors import LoramuxError
from loramux.v1 import residency_pb2
from loramux_server.services.adapters.descriptions import Descriptions
from loramux_server.services.adapters.intake import Intake
from loramux_server.services.adapters.pins import Pins
from loramux_server.services.adapters.storage import storage_errors
from loramux_server.store.record import AdapterRecord
from loramux_server.transport.rpc import Context


class ResidencyService:
    """Implements `loramux.v1.ResidencyService`."""

    descriptor = residency_pb2.DESCRIPTOR.services_by_name["ResidencyService"]

    def __init__(self, *, intake: Intake, pins: Pins, descriptions: Descriptions) -> None:
        self._intake = intake
        self._pins = pins
        self._descriptions = descriptions

    async def PinAdapter(
        self, request: residency_pb2.PinAdapterRequest, context: Context
    ) -> residency_pb2.PinAdapterResponse:
        """Pin a version to the device, and answer once it is loaded."""
        was_pinned = self._intake.registry.get(request.name).is_pinned
        with storage_errors():
            record = await self._pins.pin(request.name)
        try:
            await self._load(str(record))
        except LoramuxError:
            if not was_pinned:
                with storage_errors():
                    await self._pins.unpin(str(record))
            raise
        return residency_pb2.PinAdapterResponse(adapter=self._descriptions.of(record))

    async def UnpinAdapter(
        self, request: residency_pb2.UnpinAdapterRequest, context: Context
    ) -> residency_pb2.UnpinAdapterResponse:
        """Unpin a version, so that it may be evicted."""
        with storage_errors():
            record = await self._pins.unpin(request.name)
        return residency_pb2.UnpinAdapterResponse(adapter=self._descriptions.of(record))

    async def PrefetchAdapter(
        self, request: residency_pb2.PrefetchAdapterRequest, context: Context
    ) -> residency_pb2.PrefetchAdapterResponse:
        """Load a version to the device, and answer once it is there."""
        record = await self._load(request.name)
        return residency_pb2.PrefetchAdapterResponse(adapter=self._descriptions.of(record))

    async def _load(self, reference: str) -> AdapterRecord:
        with self._intake.registry.lease(reference, field="name") as (record, _):
            await self._intake.load(record)
        return record
