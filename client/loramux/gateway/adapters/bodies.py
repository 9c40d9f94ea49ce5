"""The JSON bodies and query parameters of `/v1/adapters`."""

import re

import msgspec
from starlette.requests import Request

from loramux.gateway.parsing import UnsupportedFields
from loramux.gateway.refusal import invalid

NOTHING_ELSE = UnsupportedFields(harmless=frozenset(), accepted={})
"""For bodies whose unknown fields are all refused."""
_FLAGS = {"": True, "true": True, "1": True, "false": False, "0": False}


class ImportBody(msgspec.Struct, kw_only=True):
    """Where a server is to fetch an adapter from."""

    uri: str
    must_not_exist: bool = False
    ttl_seconds: float | None = None


class AliasBody(msgspec.Struct, kw_only=True):
    """The new target of an alias: one version, or several by weight."""

    version: int | None = None
    weights: dict[int, int] | None = None
    expected: int | dict[int, int] | None = None
    """The current target, for compare-and-swap, in either form; `{}` if there must be no alias."""


class NoBody(msgspec.Struct, kw_only=True):
    """A body without fields."""


class TtlBody(msgspec.Struct, kw_only=True):
    """A version's time to live, from now on."""

    seconds: float | None = None
    """None for no expiry."""


def reference_of(request: Request, part: str = "reference") -> str:
    """Return the reference in the path, qualified with the query's tenant if there is one."""
    reference: str = request.path_params[part]
    tenant = request.query_params.get("tenant", "")
    return f"{tenant}/{reference}" if tenant else reference


def check_query(request: Request, *known: str) -> None:
    """Check that the query has only `known` parameters, each at most once.

    Raises:
        InvalidArgumentError: It has another or a repeated one; the error names it.
    """
    names = [name for name, _ in request.query_params.multi_items()]
    for name in names:
        if name not in known:
            what = f"; expected one of {', '.join(known)}" if known else ""
            raise invalid(name, f"{name[:80]!r} is not a query parameter of this route{what}")
        if names.count(name) > 1:
            raise invalid(name, f"{name} is given more than once")


def flag(request: Request, name: str) -> bool:
    """Return the boolean `name` of the query: false if missing, true if it has no value.

    Raises:
        InvalidArgumentError: Its value is neither true nor false.
    """
    if name not in request.query_params:
        return False
    given = request.query_params[name].lower()
    if given not in _FLAGS:
        raise invalid(name, f"{name} is {given[:80]!r}; expected true or false")
    return _FLAGS[given]


def number(request: Request, name: str) -> float | None:
    """Return the number `name` of the query; None if missing.

    Raises:
        InvalidArgumentError: It is not a number.
    """
    given = request.query_params.get(name)
    if given is None:
        return None
    if not re.fullmatch(r"\d{1,15}(\.\d{1,9})?", given, re.ASCII):
        raise invalid(name, f"{name} is {given[:80]!r}; expected a number")
    return float(given)


def whole_number(request: Request, name: str) -> int | None:
    """Return the whole number `name` of the query; None if missing.

    Raises:
        InvalidArgumentError: It is not a whole number.
    """
    given = request.query_params.get(name)
    if given is None:
        return None
    if not (given.isascii() and given.isdecimal() and len(given) < 19):
        raise invalid(name, f"{name} is {given[:80]!r}; expected a whole number")
    return int(given)
