"""Suggestions for the name of a layer that a base model does not have."""

import difflib
import re
from collections.abc import Iterable

_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")
_MOST = 3
_MAX_LENGTH = 200
"""Characters of a name that are compared; the time grows with their square."""


def nearest(module: str, layers: Iterable[str]) -> list[str]:
    """Return at most three of the numbered `layers` whose names are most similar to `module`.

    Of names that differ only in numbers, it is the first; if `module` itself differs from existing
    ones only in a number, the last of these is returned. Empty if `module` has no number.
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
