"""Forms that are not retried for a while."""

import hashlib
import time
from collections import OrderedDict

from loramux_server.forms.form import Form
from loramux_server.forms.messages import encode

BLOCK_SECONDS = 60.0
"""How long a form that cost a process is refused: losing the process delays others, too."""
MAX_BLOCKED = 256
"""Forms remembered at most."""


class FormBlocklist:
    """Remembers digests of forms that cost a process, not their content."""

    def __init__(self) -> None:
        self._until: OrderedDict[bytes, tuple[float, str]] = OrderedDict()
        """Digest -> when it may be tried again, and why not before."""

    def add(self, form: Form, why: str) -> None:
        """Record that a process was lost to `form`."""
        digest = _digest(form)
        self._until[digest] = time.monotonic() + BLOCK_SECONDS, why
        self._until.move_to_end(digest)
        if len(self._until) > MAX_BLOCKED:
            self._until.popitem(last=False)

    def reason(self, form: Form) -> str | None:
        """Return why `form` is refused at present, None if it is not."""
        until, why = self._until.get(_digest(form), (0.0, ""))
        return why if time.monotonic() < until else None


def _digest(form: Form) -> bytes:
    return hashlib.blake2b(encode(form), digest_size=16).digest()
