"""Grammar rules for strings that are written verbatim."""

from collections.abc import Sequence
from typing import Any

from loramux_adapters.errors import shown
from loramux_server.chat.messages import Piece
from loramux_server.forms.grammar import escape_regex, lark_regex
from loramux_server.tools.schemas import ANNOTATIONS, UnknownSchemaError
from loramux_server.tools.symbols import symbols
from loramux_server.tools.syntax import ToolSyntax, marks_of

_DATE = "[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])"
_TIME = "([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]([.][0-9]+)?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
_FORMATS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}T{_TIME}",
    "uuid": "[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}",
}
_OF_OTHERS = frozenset({
    "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "items",
    "prefixItems", "minItems", "maxItems", "properties", "required", "additionalProperties",
})  # fmt: skip
"""Keywords without effect on strings."""
_KNOWN = ANNOTATIONS | _OF_OTHERS | {"type", "minLength", "maxLength", "pattern", "format"}


def text_rules(
    syntax: ToolSyntax,
    closing: Sequence[Piece],
    name: str,
    schema: dict[str, Any],
    *,
    not_first: str = "",
    not_in: str | None = None,
) -> list[str]:
    """Return the rules of a string and its closing: `name`, and others.

    Args:
        syntax: How calls are written.
        closing: What follows the string; the string cannot contain its first delimiter.
        name: The name of the first rule, in lower case.
        schema: The schema of the string, without `enum` and `const`.
        not_first: Characters with which the string cannot begin.
        not_in: An expression that must not match anywhere in the string.

    Raises:
        UnknownSchemaError: The schema has a keyword that cannot be enforced.
    """
    word = marks_of(closing)[0]
    first, *rest = closing
    is_lazy = not first.is_token and word in first.text
    if is_lazy:
        before, _, after = first.text.partition(word)
        end, rest = before + word, [Piece(after, False), *rest]
    elif first.is_token:  # text cannot match a token, so the string ends there by itself
        end, rest = "", list(closing)
    else:
        end = first.text
    # A lazy terminal includes the delimiter at its end; only an earlier one is forbidden.
    forbidden = [f"(?s:.*){escape_regex(word)}{'(?s:.)' if is_lazy else ''}(?s:.*)"]
    if not_first:
        forbidden.append(rf"\s*[{escape_regex(not_first)}](?s:.*)")
    if not_in is not None:
        forbidden.append(f"(?s:.*)({not_in})(?s:.*)")
    parts = [lark_regex(body + escape_regex(end)) for body in _bodies(schema)]
    parts += [f"~{lark_regex(expression)}" for expression in forbidden]
    terminal = name.upper()
    return [
        f"{name}: {name}_text {symbols(syntax.ids, (piece for piece in rest if piece.text))}",
        f"{name}_text{'[lazy]' if is_lazy else ''}: {terminal}",
        f"{terminal}: {' & '.join(parts)}",
    ]


def _bodies(schema: dict[str, Any]) -> list[str]:
    """Return the expressions that a string has to match, all of them."""
    if unknown := sorted(schema.keys() - _KNOWN):
        raise UnknownSchemaError(f"uses {unknown[0]!r} for a string")
    least, most = (
        _length(key, schema[key]) if key in schema else "" for key in ("minLength", "maxLength")
    )
    bodies = [f"(?s:.{{{least or 0},{most}}})"]
    if "pattern" in schema:
        bodies.append(_anywhere(_text("pattern", schema["pattern"])))
    if "format" in schema:
        name = _text("format", schema["format"])
        if name not in _FORMATS:
            raise UnknownSchemaError(f"uses the format {name!r}")
        bodies.append(_FORMATS[name])
    return bodies


def _length(key: str, value: object) -> int:
    """Return the `value` of a keyword as a length; 2.0 is accepted for 2."""
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value == int(value):
        return int(value)
    raise UnknownSchemaError(f"has {key!r} that is {shown(value)}, which is not a length")


def _text(key: str, value: object) -> str:
    """Return the `value` of a keyword, which has to be a string."""
    if not isinstance(value, str):
        raise UnknownSchemaError(f"has {key!r} that is {shown(value)}, which is not a string")
    return value


def _anywhere(pattern: str) -> str:
    """Return the expression for a whole text that contains a match of `pattern`.

    Raises:
        UnknownSchemaError: Only a part of it is anchored, which that cannot express.
    """
    signs = _signs(pattern)
    begins, ends = (0, "^", 0) in signs, (len(pattern) - 1, "$", 0) in signs
    anchors = sum(char in "^$" for _, char, _ in signs)
    has_choice = any(char == "|" and depth == 0 for _, char, depth in signs)
    if anchors != begins + ends or (anchors and has_choice):
        raise UnknownSchemaError(f"uses the partly anchored pattern {pattern!r}")
    inner = pattern[begins : len(pattern) - ends]
    return f"{'' if begins else '(?s:.*)'}({inner}){'' if ends else '(?s:.*)'}"


def _signs(pattern: str) -> list[tuple[int, str, int]]:
    """Return each `^`, `$` and `|` of a regular expression as (offset, character, group depth).

    Raises:
        UnknownSchemaError: It is not a valid expression.
    """
    found, depth, is_class, is_escaped = [], 0, False, False
    for at, char in enumerate(pattern):
        if is_escaped:
            is_escaped = False
        elif char == "\\":
            is_escaped = True
        elif is_class:
            is_class = char != "]"
        elif char == "[":
            is_class = True
        elif char in "()":
            depth += 1 if char == "(" else -1
        elif char in "^$|":
            found.append((at, char, depth))
        if depth < 0:
            break
    if depth or is_class or is_escaped:
        raise UnknownSchemaError(f"has the pattern {pattern!r}, which is not valid")
    return found
