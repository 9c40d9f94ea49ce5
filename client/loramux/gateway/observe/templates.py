"""Maps the path of a request to its route's template, of which there is a bounded number."""

from collections.abc import Iterable, Iterator

from starlette.routing import BaseRoute, Mount, Route, compile_path

UNMATCHED = "unmatched"
"""Stands for all paths without a route."""


class Templates:
    """The templates of an application's routes, such as `/v1/models/{id}`."""

    def __init__(self, routes: Iterable[BaseRoute]) -> None:
        paths = list(_paths(routes, ""))
        self._fixed = frozenset(path for path in paths if "{" not in path)
        self._patterns = [(compile_path(path)[0], path) for path in paths if "{" in path]

    def of(self, path: str) -> str:
        """Return the first template that `path` matches, or UNMATCHED."""
        if path in self._fixed:
            return path
        matching = (template for pattern, template in self._patterns if pattern.match(path))
        return next(matching, UNMATCHED)


def _paths(routes: Iterable[BaseRoute], before: str) -> Iterator[str]:
    for route in routes:
        if isinstance(route, Mount):
            yield from _paths(route.routes, before + route.path)
        elif isinstance(route, Route):
            yield before + route.path
