"""Anthropic's Messages API, in front of the same servers.

A request becomes what a chat of OpenAI's API becomes: the fields that both have go through the code
for chats. What is different is here: contents made of blocks (`blocks.py`, `turns.py`), the answer
(`answer.py`), and how errors look (`refusal.py`).
"""

from loramux.gateway.anthropic.door import Messages
from loramux.gateway.anthropic.models import as_model, listed
from loramux.gateway.anthropic.refusal import is_anthropic, plain_refusal, refusal

__all__ = ["Messages", "as_model", "is_anthropic", "listed", "plain_refusal", "refusal"]
