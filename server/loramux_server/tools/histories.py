"""Adapting past calls in a conversation to what a template expects."""

from msgspec import structs

from loramux_server.chat.messages import Call, Talk
from loramux_server.tools.ids import is_named, named_id
from loramux_server.tools.syntax import ToolSyntax


def as_taken(talk: Talk, syntax: ToolSyntax) -> Talk:
    """Return `talk` with its calls as a template of this `syntax` expects them."""
    if syntax.takes_text:
        talk = structs.replace(talk, has_text_arguments=True)
    return _with_names(talk) if syntax.is_named_by_id else talk


def _with_names(talk: Talk) -> Talk:
    """Return `talk` with ids of calls that contain the name of the tool, as the model writes them.

    Calls of other systems have other ids, from which the model could not tell the tool.
    """
    ids: dict[str, str] = {}
    number, turns = 0, []
    for turn in talk.turns:
        calls: list[Call] = []
        for call in turn.calls:
            own = call.id if is_named(call.id, call.name) else named_id(call.name, number)
            ids[call.id] = own
            calls.append(structs.replace(call, id=own))
            number += 1
        call_id = ids.get(turn.call_id, turn.call_id) if turn.call_id else ""
        turns.append(structs.replace(turn, calls=calls, call_id=call_id))
    return structs.replace(talk, turns=turns)
