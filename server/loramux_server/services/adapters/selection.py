"""The adapters on a page of a list."""

from collections.abc import Callable, Iterator

from loramux.v1 import adapters_pb2
from loramux_server.access.caller import caller
from loramux_server.services.adapters.descriptions import SOURCES, Descriptions
from loramux_server.store.record import AdapterRecord
from loramux_server.store.reference import parse_reference
from loramux_server.store.registry import Registry


class Selection:
    """The adapters that a list request selects, in order."""

    def __init__(self, registry: Registry, descriptions: Descriptions) -> None:
        self._registry = registry
        self._descriptions = descriptions

    def after(self, request: adapters_pb2.ListAdaptersRequest) -> Iterator[AdapterRecord]:
        """Yield the selected adapters after the previous page that the caller may see.

        Raises:
            InvalidArgumentError: The page token is invalid.
        """
        return filter(self._filter(request), self._after_page_token(request))

    def _after_page_token(
        self, request: adapters_pb2.ListAdaptersRequest
    ) -> Iterator[AdapterRecord]:
        if not request.page_token:
            begin = (request.tenant, request.name_prefix) if request.tenant else None
            yield from self._registry.records(begin=begin, all_versions=request.all_versions)
            return
        last = parse_reference(request.page_token, "page_token")
        adapter = (last.tenant, last.name)
        for record in self._registry.records(begin=adapter, all_versions=request.all_versions):
            # The versions of one adapter come newest first.
            if record.adapter != adapter or (last.version and record.version < last.version):
                yield record

    def _filter(self, request: adapters_pb2.ListAdaptersRequest) -> Callable[[AdapterRecord], bool]:
        who = caller()
        return lambda record: (
            who.sees(record.tenant)
            and request.tenant in ("", record.tenant)
            and record.name.startswith(request.name_prefix)
            and request.source in (0, SOURCES[record.source])
            and request.tier in (0, self._descriptions.tier_of(record))
        )
