"""What stands for other characters in strings of Python and JSON."""

import re

_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.))", re.DOTALL)
_ESCAPED = {
    "n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "\\": "\\", "'": "'", '"': '"', "/": "/",
    "\n": "",
}  # fmt: skip
ESCAPE = r"\\[xuUnrtbf\\'\"/\n]"
"""What may be one."""


def unescaped(text: str) -> str:
    """Return what `text` stands for between quotes; what is no escape stays as it is."""
    return _ESCAPE.sub(_meant, text)


def _meant(found: re.Match[str]) -> str:
    code = found[1] or found[2] or found[3]
    if code is None:
        return _ESCAPED.get(found[4], found[0])
    number = int(code, 16)
    return chr(number) if number <= 0x10FFFF else found[0]
