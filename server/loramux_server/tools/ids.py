"""Ids of calls whose model makes up none."""

import secrets
import string

_CHARS = string.ascii_letters + string.digits
_LENGTH = 9
"""Templates of Mistral take ids of just this form, others any."""


def new_id() -> str:
    """Return one."""
    return "".join(secrets.choice(_CHARS) for _ in range(_LENGTH))
