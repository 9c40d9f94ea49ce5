"""Conversations that a template renders to show how it writes tool calls."""

from typing import Any

from msgspec import structs

from loramux_server.chat.messages import Call, Conversation, Message, Tool
from loramux_server.tools.ids import named_id

SIGN = "§"
"""Begins an answer, and no call."""
THOUGHT = "¶ so"
"""The reasoning before an answer."""
KEYS = "when", "where"
STRINGS = "delta", "gamma"
VALUES = ('a "b" <c>\n& d', 37, 2.5, True, None, {"theta": [1, "iota"]}, [False, "kappa"])
"""One value of each JSON type."""
AWKWARD = 'it\'s \\ or "so"'
"""A string with characters that may have to be escaped."""
_ARGUMENTS: dict[str, Any] = {KEYS[1]: STRINGS[1]}
FIRST = Call("probe0001", "look_up_alpha", dict(_ARGUMENTS))
SECOND = Call("probe0002", "look_up_beta", dict(_ARGUMENTS))
NAMED_FIRST, NAMED_SECOND = (
    Call(named_id(call.name, number), call.name, call.arguments)
    for number, call in enumerate((FIRST, SECOND))
)
"""The same, with ids that contain their names."""
_SCHEMA = {
    "type": "object",
    "properties": {
        "when": {"type": "string", "description": "A time."},
        "where": {"type": "string", "description": "A place."},
    },
    "required": ["where"],
}
TOOLS = [Tool(call.name, "Looks it up.", _SCHEMA) for call in (FIRST, SECOND)]
_ASKED = Message("user", "Where?")

ASKING = Conversation([_ASKED], TOOLS)
ANSWERING = Conversation([_ASKED, Message("assistant", f"{SIGN} here")], TOOLS)
CALLING = Conversation([_ASKED, Message("assistant", "", [FIRST])], TOOLS)
CALLING_TWICE = Conversation([_ASKED, Message("assistant", "", [FIRST, SECOND])], TOOLS)
NAMED_CALLING = Conversation([_ASKED, Message("assistant", "", [NAMED_FIRST])], TOOLS)
NAMED_CALLING_TWICE = Conversation(
    [_ASKED, Message("assistant", "", [NAMED_FIRST, NAMED_SECOND])], TOOLS
)


def calling_with(arguments: dict[str, Any]) -> Conversation:
    """Return a conversation with one call with `arguments`."""
    call = Call(FIRST.id, FIRST.name, arguments)
    return Conversation([_ASKED, Message("assistant", "", [call])], TOOLS)


def thoughtful(conversation: Conversation) -> Conversation:
    """Return `conversation` with `THOUGHT` as the reasoning of its last message."""
    *messages, last = conversation.messages
    return structs.replace(
        conversation, messages=[*messages, structs.replace(last, reasoning=THOUGHT)]
    )
