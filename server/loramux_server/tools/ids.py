"""Ids of tool calls: generated ones, and those of models that put the tool's name into the id."""

import re
import secrets
import string
from collections.abc import Iterable

from loramux_server.tools.arguments import NAME

_CHARS = string.ascii_letters + string.digits
_LENGTH = 9
"""Mistral's templates accept only such ids, others any."""
BEFORE_NAME, AFTER_NAME = "functions.", ":"
"""The text around the name in an id that contains it; a number follows."""
_NAMED = re.compile(rf"({re.escape(BEFORE_NAME)})?({NAME.pattern}){AFTER_NAME}([0-9]{{1,9}})")
MAX_NAMED = 128
"""Most characters of an id that contains the name of a tool."""


def new_id() -> str:
    """Return a random id."""
    return "".join(secrets.choice(_CHARS) for _ in range(_LENGTH))


def named_id(name: str, number: int) -> str:
    """Return the id of a call of the tool `name`, the call `number` of a conversation, from 0.

    If a template writes the id of a call in place of its name, its model is trained to generate
    such ids.
    """
    return f"{BEFORE_NAME}{name}{AFTER_NAME}{number}"


def is_named(call_id: str, name: str) -> bool:
    """Return whether an id has the form of `named_id` for the tool `name`."""
    found = _NAMED.fullmatch(call_id)
    return found is not None and found[1] is not None and found[2] == name


def name_in(call_id: str, names: Iterable[str]) -> tuple[str, int] | None:
    """Return the name of a tool and the number in an id; None if there are none.

    Models that saw other ids omit some of the text around the name.

    Args:
        call_id: What the model wrote, perhaps without BEFORE_NAME.
        names: The names of the tools.
    """
    found = _NAMED.fullmatch(call_id)
    if found:
        return found[2], int(found[3])
    for name in sorted(names, key=len, reverse=True):
        like = re.fullmatch(rf"(?:functions)?[._]?{re.escape(name)}[:_.-]?([0-9]{{0,9}})", call_id)
        if like:
            return name, int(like[1] or 0)
    return None
