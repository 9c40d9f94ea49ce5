"""Which calls go where their adapter is, and which adapter that is."""

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
"""What says where an adapter is to be can only mean the server that gets its calls."""


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
"""By the path of the call; each may be made again."""


def home(reference: str) -> RouteOf:
    """Return what sends every call to the server of one adapter."""
    route = Route(adapter_name(reference), is_home=True)
    return lambda _: route
