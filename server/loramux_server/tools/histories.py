"""Adapting past calls in a conversation to what a template expects."""

from msgspec import structs

from loramux_server.chat.messages import Call, Conversation
from loramux_server.tools.ids import is_named, named_id
from loramux_server.tools.syntax import ToolSyntax


def adapt_history(conversation: Conversation, syntax: ToolSyntax) -> Conversation:
    """Return `conversation` with its calls as a template of this `syntax` expects them."""
    if syntax.takes_text:
        conversation = structs.replace(conversation, has_text_arguments=True)
    return _with_names(conversation) if syntax.is_named_by_id else conversation


def _with_names(conversation: Conversation) -> Conversation:
    """Return `conversation` with ids of calls that contain the tool's name, as the model writes it.

    Calls of other systems have other ids, from which the model could not tell the tool.
    """
    ids: dict[str, str] = {}
    number, messages = 0, []
    for message in conversation.messages:
        calls: list[Call] = []
        for call in message.calls:
            own = call.id if is_named(call.id, call.name) else named_id(call.name, number)
            ids[call.id] = own
            calls.append(structs.replace(call, id=own))
            number += 1
        call_id = ids.get(message.call_id, message.call_id) if message.call_id else ""
        messages.append(structs.replace(message, calls=calls, call_id=call_id))
    return structs.replace(conversation, messages=messages)
