"""What an adapter may be called."""

import re

from loramux_adapters.errors import PackageError, shown

MAX_NAME_LENGTH = 63
# No text matches in two ways: the time to refuse a name must not grow with the ways to read it.
_NAME = re.compile(r"[a-z0-9]+(?:(?:[_.]|-+)[a-z0-9]+)*")


def check_adapter_name(name: str) -> str:
    """Return `name` if an adapter may have it; see `check_name`."""
    return check_name(name, "adapter name")


def check_name(name: str, what: str) -> str:
    """Return `name` if it may be that of an adapter or a tenant; `what` it is, for the error.

    Names follow the rules that container images know: lower-case letters and digits, with `-`, `_`
    or `.` between them, 63 characters at most. Such a name is safe as a label, a file name and a
    part of a reference.

    Raises:
        PackageError: `name` breaks the rule.
    """
    if len(name) > MAX_NAME_LENGTH:
        raise PackageError(
            f"{what} {shown(name)} has {len(name)} characters; at most {MAX_NAME_LENGTH}",
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
    """Return a valid name like `name`, as the end of a message; empty if nothing is left of it."""
    like = re.sub("[^a-z0-9._]+", "-", name.lower()).strip("-._")
    return f", such as {like!r}" if _NAME.fullmatch(like) else ""
