"""Ids of calls: those whose model makes up none, and those that have the name of a tool."""

import re
import secrets
import string
from collections.abc import Iterable

from loramux_server.tools.arguments import NAME

_CHARS = string.ascii_letters + string.digits
_LENGTH = 9
"""Templates of Mistral take ids of just this form, others any."""
BEFORE_NAME, AFTER_NAME = "functions.", ":"
"""What stands beside the name in an id that has one, before its number."""
_NAMED = re.compile(rf"({re.escape(BEFORE_NAME)})?({NAME.pattern}){AFTER_NAME}([0-9]{{1,9}})")
MAX_NAMED = 128
"""Characters of an id that has the name of a tool."""


def new_id() -> str:
    """Return one."""
    return "".join(secrets.choice(_CHARS) for _ in range(_LENGTH))


def named_id(name: str, number: int) -> str:
    """Return the id of the call of a tool, the one with this number in a conversation.

    Where a template writes the id of a call in place of its name, models are trained to make up
    such ids.
    """
    return f"{BEFORE_NAME}{name}{AFTER_NAME}{number}"


def is_named(call_id: str, name: str) -> bool:
    """Return whether an id is one of a call of the tool `name`."""
    found = _NAMED.fullmatch(call_id)
    return found is not None and found[1] is not None and found[2] == name


def name_in(call_id: str, names: Iterable[str]) -> tuple[str, int] | None:
    """Return the name of a tool and the number in an id; None if there are none.

    Models that were shown other ids leave out some of what stands beside the name.

    Args:
        call_id: What the model wrote, perhaps without the first word.
        names: Those of the tools.
    """
    found = _NAMED.fullmatch(call_id)
    if found:
        return found[2], int(found[3])
    for name in sorted(names, key=len, reverse=True):
        like = re.fullmatch(rf"(?:functions)?[._]?{re.escape(name)}[:_.-]?([0-9]{{0,9}})", call_id)
        if like:
            return name, int(like[1] or 0)
    return None
