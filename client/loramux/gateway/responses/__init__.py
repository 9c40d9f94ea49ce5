"""OpenAI's Responses API, made of what chats are made of.

Nothing is kept: a response can be neither fetched nor gone on with by its id.
"""

from loramux.gateway.responses.route import respond

__all__ = ["respond"]
