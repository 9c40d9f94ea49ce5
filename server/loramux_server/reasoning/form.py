"""Grammar rules for the reasoning before an answer with structured output."""

from loramux_server.forms.grammar import escape_regex
from loramux_server.reasoning.channels import ChannelSyntax
from loramux_server.reasoning.syntax import ReasoningSyntax
from loramux_server.tools.symbols import symbols

_GAP = r"GAP: /[ \n]{0,4}/"
"""White space between reasoning and answer."""


def thought(syntax: ReasoningSyntax, *, is_open: bool) -> str:
    """Return the rules for reasoning; the first of them is `before`.

    Args:
        syntax: How it is marked.
        is_open: Whether the prompt has opened it. If not, it is optional.
    """
    opening, closing = syntax.opening, syntax.closing
    if opening in syntax.ids and closing in syntax.ids:  # a terminal matches no added tokens
        rules = [f"before: THOUGHT? <[{syntax.ids[closing]}]> GAP?", "THOUGHT: /(?s:.+)/", _GAP]
        begin = f"<[{syntax.ids[opening]}]> "
    else:
        begin = "" if is_open else escape_regex(opening)
        rules = [
            "before: thought GAP?",
            f"thought[lazy]: /{begin}(?s:.*){escape_regex(closing)}/",
            _GAP,
        ]
        begin = ""
    if not is_open:
        rules[0] = f"before: ({begin}{rules[0].removeprefix('before: ')})?"
    return "\n".join(rules)


def message(syntax: ChannelSyntax, *, is_open: bool, is_addressed: bool) -> str:
    """Return the rules for a reasoning message and for the header of the answer after it.

    Args:
        syntax: How messages are written.
        is_open: Whether the prompt has opened the reasoning. If not, it is optional.
        is_addressed: Whether the grammar after it has the headers of its own, as for tool calls.
    """
    channels, ids = syntax.channels, syntax.ids
    thought = f"THOUGHT? {symbols(ids, channels.between)}"
    if not is_open:
        thought = f"({symbols(ids, channels.header(syntax.thought))} {thought})?"
    header = "" if is_addressed else symbols(ids, channels.header(channels.answer))
    return f"before: {thought} {header}\nTHOUGHT: /(?s:.+)/"
