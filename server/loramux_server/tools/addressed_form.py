"""The grammar of an answer that is a call as a message to a tool."""

from collections.abc import Sequence

from loramux_server.chat.messages import Piece, Tool
from loramux_server.forms.form import Form, FormKind
from loramux_server.forms.grammar import json_rule
from loramux_server.tools.addressed import AddressedSyntax
from loramux_server.tools.form import ANY_TEXT, Otherwise, json_arguments
from loramux_server.tools.rules import Rules
from loramux_server.tools.symbols import symbols


def form_of_addressed(syntax: AddressedSyntax, tools: Sequence[Tool], otherwise: Otherwise) -> Form:
    """Return the form of an answer with one call of `tools`, or `otherwise`. The call ends it.

    Arguments meet the schema if the tool is strict or a call is required (`otherwise` is None);
    else they may be any object.

    Args:
        syntax: How calls are written.
        tools: The tools.
        otherwise: What an answer without a call may be.

    Raises:
        LargeRulesError: The grammar is too large.
    """
    channels, ids = syntax.channels, syntax.ids
    final = symbols(ids, channels.header(channels.answer))
    rules = Rules()
    if otherwise is None:
        rules.add("answer: call")
    elif otherwise == ANY_TEXT:
        header = symbols(ids, channels.header(syntax.channel))
        rules.add(
            f"answer: {final} TEXT? | ({header} TEXT? {symbols(ids, channels.between)})? call",
            "TEXT: /(?s:.+)/",
        )
    else:
        rules.add(f"answer: {final} other | call", f"other: {json_rule(otherwise)}")
    rules.add("call: " + " | ".join(f"call{number}" for number in range(len(tools))))
    for number, tool in enumerate(tools):
        headers = " | ".join(symbols(ids, header) for header in _headers(syntax, tool.name))
        is_free = otherwise is not None and not tool.is_strict
        rules.add(
            f"call{number}: ({headers}) arguments{number}",
            f"arguments{number}: {json_arguments(tool, is_free=is_free)}",
        )
    return Form(FormKind.TOOL_CALLS, rules.text)


def _headers(syntax: AddressedSyntax, name: str) -> list[list[Piece]]:
    """Return the headers that may precede the arguments of a call."""
    channels = syntax.channels
    to = syntax.recipient + name
    kinds: list[list[Piece]] = [[]]
    if syntax.kind:
        kinds.append([Piece(f" {syntax.kind}", False)])
        if syntax.kind_mark:
            kinds.append([Piece(" ", False), syntax.kind_mark, Piece(syntax.kind, False)])
    before = [
        [Piece(to, False), channels.before, Piece(syntax.channel, False)],
        [channels.before, Piece(syntax.channel + to, False)],
    ]
    return [[*begin, *kind, channels.after] for begin in before for kind in kinds]
