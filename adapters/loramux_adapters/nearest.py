"""Layers of a base model that are called much like one that it has not."""

import difflib
import re
from collections.abc import Iterable

_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")
_MOST = 3
_MAX_LENGTH = 200
"""Characters of a name that are compared: the time for it grows with their square."""


def nearest(module: str, layers: Iterable[str]) -> list[str]:
    """Return the names of `layers` of a stack that are most like `module`, three at most.

    Of those that differ in numbers alone it is the first one; where `module` itself differs from
    some in its number alone, it is the last of them. None for a module that is in no stack.
    """
    if not _NUMBER.search(module):
        return []
    first: dict[str, str] = {}
    last: dict[str, str] = {}
    for name in filter(_NUMBER.search, layers):
        form = _NUMBER.sub("#", name)
        first.setdefault(form, name)
        last[form] = name
    wanted = _NUMBER.sub("#", module[:_MAX_LENGTH])
    if wanted in last:
        return [last[wanted]]
    return [first[form] for form in difflib.get_close_matches(wanted, first, _MOST, cutoff=0.0)]
