"""Conversations that a template is given, to see how it writes calls of tools."""

from loramux_server.chat.messages import Call, Talk, Tool, Turn

SIGN = "§"
"""Begins an answer as no call begins."""
_ARGUMENTS = {"where": "gamma"}
FIRST = Call("probe0001", "look_up_alpha", dict(_ARGUMENTS))
SECOND = Call("probe0002", "look_up_beta", dict(_ARGUMENTS))
_SCHEMA = {
    "type": "object",
    "properties": {"where": {"type": "string", "description": "A place."}},
    "required": ["where"],
}
TOOLS = [Tool(call.name, "Looks it up.", _SCHEMA) for call in (FIRST, SECOND)]
_ASKED = Turn("user", "Where?")

ASKING = Talk([_ASKED], TOOLS)
ANSWERING = Talk([_ASKED, Turn("assistant", f"{SIGN} here")], TOOLS)
CALLING = Talk([_ASKED, Turn("assistant", "", [FIRST])], TOOLS)
CALLING_TWICE = Talk([_ASKED, Turn("assistant", "", [FIRST, SECOND])], TOOLS)
