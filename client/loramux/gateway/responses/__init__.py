"""OpenAI's Responses API, translated to chats and back.

It is stateless: a response can be neither fetched nor continued by its id.
"""

from loramux.gateway.responses.route import respond

__all__ = ["respond"]
