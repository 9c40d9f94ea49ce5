"""Which calls are routed by adapter, and by which one."""

from collections.abc import Callable
from typing import Any

from loramux._routing.rendezvous import adapter_name
from loramux._routing.router import Route

_BY_ADAPTERS = {
    "GenerationService": ("Generate", "StreamGenerate"),
    "ClassificationService": ("Classify",),
    "QuestionAnsweringService": ("Answer",),
    "EmbeddingService": ("Embed",),
}
_BY_NAME = {"ResidencyService": ("PinAdapter", "UnpinAdapter", "PrefetchAdapter")}
"""Methods on the residency of an adapter, which have to reach the server that gets its calls."""


def _by_adapters(request: Any) -> Route:  # noqa: ANN401 - one of several messages
    name = request.adapter
    if not name and "adapters" in request.DESCRIPTOR.fields_by_name and request.adapters:
        name = max(request.adapters, key=_weight).adapter
    return Route(adapter_name(name))


def _weight(part: Any) -> float:  # noqa: ANN401 - WeightedAdapter
    return abs(part.weight) if part.HasField("weight") else 1.0


def _by_name(request: Any) -> Route:  # noqa: ANN401 - one of several messages
    return Route(adapter_name(request.name), is_sticky=True)


RouteOf = Callable[[Any], Route]

ROUTES: dict[str, RouteOf] = {
    f"/loramux.v1.{service}/{method}": found
    for services, found in ((_BY_ADAPTERS, _by_adapters), (_BY_NAME, _by_name))
    for service, methods in services.items()
    for method in methods
}
"""By path of the method; each may be retried."""


def sticky_route(reference: str) -> RouteOf:
    """Return a route that sends every call to the server of one adapter."""
    route = Route(adapter_name(reference), is_sticky=True)
    return lambda _: route
