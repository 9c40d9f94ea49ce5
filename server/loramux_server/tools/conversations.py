"""Conversations that a template is given, to see how it writes calls of tools."""

from typing import Any

from loramux_server.chat.messages import Call, Talk, Tool, Turn

SIGN = "§"
"""Begins an answer as no call begins."""
KEYS = "when", "where"
STRINGS = "delta", "gamma"
VALUES = ('a "b" <c>\n& d', 37, 2.5, True, None, {"theta": [1, "iota"]}, [False, "kappa"])
"""One of each kind."""
_ARGUMENTS: dict[str, Any] = {KEYS[1]: STRINGS[1]}
FIRST = Call("probe0001", "look_up_alpha", dict(_ARGUMENTS))
SECOND = Call("probe0002", "look_up_beta", dict(_ARGUMENTS))
_SCHEMA = {
    "type": "object",
    "properties": {
        "when": {"type": "string", "description": "A time."},
        "where": {"type": "string", "description": "A place."},
    },
    "required": ["where"],
}
TOOLS = [Tool(call.name, "Looks it up.", _SCHEMA) for call in (FIRST, SECOND)]
_ASKED = Turn("user", "Where?")

ASKING = Talk([_ASKED], TOOLS)
ANSWERING = Talk([_ASKED, Turn("assistant", f"{SIGN} here")], TOOLS)
CALLING = Talk([_ASKED, Turn("assistant", "", [FIRST])], TOOLS)
CALLING_TWICE = Talk([_ASKED, Turn("assistant", "", [FIRST, SECOND])], TOOLS)


def calling_with(arguments: dict[str, Any]) -> Talk:
    """Return a conversation with one call, which has `arguments`."""
    call = Call(FIRST.id, FIRST.name, arguments)
    return Talk([_ASKED, Turn("assistant", "", [call])], TOOLS)
