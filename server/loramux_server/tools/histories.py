"""Conversations with calls, as a template takes them."""

from msgspec import structs

from loramux_server.chat.messages import Call, Talk
from loramux_server.tools.ids import is_named, named_id
from loramux_server.tools.syntax import ToolSyntax


def as_taken(talk: Talk, syntax: ToolSyntax) -> Talk:
    """Return `talk` with calls as a template takes them that writes them as `syntax` says."""
    if syntax.takes_text:
        talk = structs.replace(talk, has_text_arguments=True)
    return _with_names(talk) if syntax.is_named_by_id else talk


def _with_names(talk: Talk) -> Talk:
    """Return `talk` with the name of the tool in the id of each call, as its model would have it.

    What was called elsewhere has other ids, and without names the model would not know what.
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
