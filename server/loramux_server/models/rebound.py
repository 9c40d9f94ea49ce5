"""Functions of modelling code with something else under one of the names that they look up."""

import types
from collections.abc import Callable
from typing import Any


def calls(function: Callable[..., Any], name: str) -> bool:
    """Return whether `function` looks up `name` among what its module defines."""
    code = getattr(function, "__code__", None)
    return (
        isinstance(function, types.FunctionType)
        and code is not None
        and name in code.co_names
        and function.__globals__.get(name) is not None
    )


def rebound(function: Callable[..., Any], name: str, found: Any) -> Callable[..., Any]:  # noqa: ANN401
    """Return `function` with `found` under `name`."""
    assert isinstance(function, types.FunctionType)
    changed = types.FunctionType(
        function.__code__,
        {**function.__globals__, name: found},
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    changed.__kwdefaults__ = function.__kwdefaults__
    return changed
