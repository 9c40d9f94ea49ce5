"""Which calls are routed by adapter, and by which one."""

from collections.abc import Callable
from typing import Any

from loramux._routing.rendezvous import adapter_name
from loramux._routing.router import Route

_ASKED = {
    "GenerationService": ("Generate", "StreamGenerate"),
    "ClassificationService": ("Classify",),
    "QuestionAnsweringService": ("Answer",),
    "EmbeddingService": ("Embed",),
}
_KEPT = {"ResidencyService": ("PinAdapter", "UnpinAdapter", "PrefetchAdapter")}
"""Methods on the residency of an adapter, which have to reach the server that gets its calls."""


def _asked(request: Any) -> Route:  # noqa: ANN401 - one of several messages
    name = request.adapter
    if not name and "adapters" in request.DESCRIPTOR.fields_by_name and request.adapters:
        name = max(request.adapters, key=_weight).adapter
    return Route(adapter_name(name))


def _weight(part: Any) -> float:  # noqa: ANN401 - WeightedAdapter
    return abs(part.weight) if part.HasField("weight") else 1.0


def _kept(request: Any) -> Route:  # noqa: ANN401 - one of several messages
    return Route(adapter_name(request.name), is_home=True)


RouteOf = Callable[[Any], Route]

ROUTES: dict[str, RouteOf] = {
    f"/loramux.v1.{service}/{method}": found
    for services, found in ((_ASKED, _asked), (_KEPT, _kept))
    for service, methods in services.items()
    for method in methods
}
"""By path of the method; each may be retried."""


def home(reference: str) -> RouteOf:
    """Return a route that sends every call to the server of one adapter."""
    route = Route(adapter_name(reference), is_home=True)
    return lambda _: route
