"""Forms that are not tried again for a while."""

import hashlib
import time
from collections import OrderedDict

from loramux_server.forms.form import Form
from loramux_server.forms.messages import encode

REST_SECONDS = 60.0
"""A form for which a process was lost is refused for so long: for others it is a loss, too."""
MAX_LOST = 256
"""Forms of which that is remembered."""


class LostForms:
    """Remembers forms for which a process was lost, and none of what they say."""

    def __init__(self) -> None:
        self._until: OrderedDict[bytes, tuple[float, str]] = OrderedDict()
        """Digest -> when it may be tried again, and why not before."""

    def note(self, form: Form, why: str) -> None:
        """Remember that a process was lost for `form`."""
        self._until[_digest(form)] = time.monotonic() + REST_SECONDS, why
        if len(self._until) > MAX_LOST:
            self._until.popitem(last=False)

    def why_not(self, form: Form) -> str | None:
        """Return why `form` is not tried at present, None if it may be."""
        until, why = self._until.get(_digest(form), (0.0, ""))
        return why if time.monotonic() < until else None


def _digest(form: Form) -> bytes:
    return hashlib.blake2b(encode(form), digest_size=16).digest()
