"""Escape sequences in strings of Python and JSON."""

import re

_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.))", re.DOTALL)
_ESCAPED = {
    "n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "\\": "\\", "'": "'", '"': '"', "/": "/",
    "\n": "",
}  # fmt: skip
ESCAPE = r"\\[xuUnrtbf\\'\"/\n]"
"""An expression for the start of an escape sequence."""


def unescaped(text: str) -> str:
    """Return the string that `text` denotes between quotes; unknown escapes stay as they are."""
    return _ESCAPE.sub(_decoded, text)


def _decoded(found: re.Match[str]) -> str:
    code = found[1] or found[2] or found[3]
    if code is None:
        return _ESCAPED.get(found[4], found[0])
    number = int(code, 16)
    return chr(number) if number <= 0x10FFFF else found[0]
