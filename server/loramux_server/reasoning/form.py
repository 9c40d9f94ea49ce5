"""What is thought before an answer that has a form, as rules of a grammar."""

from loramux_server.forms.grammar import quoted
from loramux_server.reasoning.syntax import ReasoningSyntax

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
