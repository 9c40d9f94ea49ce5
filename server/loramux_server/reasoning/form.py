"""What is thought before an answer that has a form, as rules of a grammar."""

from loramux_server.forms.grammar import quoted
from loramux_server.reasoning.channels import ChannelSyntax
from loramux_server.reasoning.syntax import ReasoningSyntax
from loramux_server.tools.symbols import symbols

_GAP = r"GAP: /[ \n]{0,4}/"
"""Between a thought and the answer."""


def thought(syntax: ReasoningSyntax, *, is_open: bool) -> str:
    """Return the rules of a thought, the first of which is `before`.

    Args:
        syntax: How it is marked.
        is_open: Whether the prompt has begun it; else a model may think, or not.
    """
    opening, closing = syntax.opening, syntax.closing
    if opening in syntax.ids and closing in syntax.ids:  # tokens are no text
        rules = [f"before: THOUGHT? <[{syntax.ids[closing]}]> GAP?", "THOUGHT: /(?s:.+)/", _GAP]
        begin = f"<[{syntax.ids[opening]}]> "
    else:
        rules = [
            "before: thought GAP?",
            f"thought[lazy]: /{'' if is_open else quoted(opening)}(?s:.*){quoted(closing)}/",
            _GAP,
        ]
        begin = ""
    if not is_open:
        rules[0] = f"before: ({begin}{rules[0].removeprefix('before: ')})?"
    return "\n".join(rules)


def message(syntax: ChannelSyntax, *, is_open: bool, is_addressed: bool) -> str:
    """Return the rules of a thought on a channel, and of what stands before an answer.

    Args:
        syntax: How messages are written.
        is_open: Whether the prompt has begun a thought; else a model may think, or not.
        is_addressed: Whether what follows has its own header, that of a message or of a call.
    """
    channels, ids = syntax.channels, syntax.ids
    thought = f"THOUGHT? {symbols(ids, channels.between)}"
    if not is_open:
        thought = f"({symbols(ids, channels.header(syntax.thought))} {thought})?"
    header = "" if is_addressed else symbols(ids, channels.header(channels.answer))
    return f"before: {thought} {header}\nTHOUGHT: /(?s:.+)/"
