"""Rules for the names of adapters and tenants."""

import re

from loramux_adapters.errors import PackageError, shown

MAX_NAME_LENGTH = 63
# Unambiguous, so that matching takes linear time: no text can match in two ways.
_NAME = re.compile(r"[a-z0-9]+(?:(?:[_.]|-+)[a-z0-9]+)*")


def check_adapter_name(name: str) -> str:
    """Return `name` if it is valid for an adapter; see `check_name`."""
    return check_name(name, "adapter name")


def check_name(name: str, what: str) -> str:
    """Return `name` if it is valid for an adapter or a tenant; errors call it `what`.

    The rules are those of container images: lower-case letters and digits, with `-`, `_` or `.`
    between them, at most 63 characters. Such a name is safe as a label, a file name and a part of a
    reference.

    Raises:
        PackageError: `name` is not valid.
    """
    if len(name) > MAX_NAME_LENGTH:
        raise PackageError(
            f"{what} {shown(name)} has {len(name)} characters; the limit is {MAX_NAME_LENGTH}",
            "INVALID_FIELD",
        )
    if not _NAME.fullmatch(name):
        raise PackageError(
            f"{what} {shown(name)} is not valid: use lower-case letters and digits, "
            f"with '-', '_' or '.' between them{_suggestion(name)}",
            "INVALID_FIELD",
        )
    return name


def _suggestion(name: str) -> str:
    """Return a message's end that suggests a valid name like `name`; empty if there is none."""
    like = re.sub("[^a-z0-9._]+", "-", name.lower()).strip("-._")
    return f", such as {like!r}" if _NAME.fullmatch(like) else ""
