"""Functions of modelling code with one global name bound to something else."""

import types
from collections.abc import Callable
from typing import Any


def calls(function: Callable[..., Any], name: str) -> bool:
    """Return whether `function` looks up the global `name` of its module."""
    code = getattr(function, "__code__", None)
    return (
        isinstance(function, types.FunctionType)
        and code is not None
        and name in code.co_names
        and function.__globals__.get(name) is not None
    )


def rebound(function: Callable[..., Any], name: str, found: Any) -> Callable[..., Any]:  # noqa: ANN401
    """Return a copy of `function` in which the global `name` is `found`."""
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
