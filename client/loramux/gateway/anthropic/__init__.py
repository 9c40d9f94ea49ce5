"""Anthropic's Messages API.

Requests are converted to chats of OpenAI's API where both have the same fields. The differences are
here: content blocks (`blocks.py`, `merged_messages.py`), answers (`answer.py`) and errors
(`refusal.py`).
"""

from loramux.gateway.anthropic.models import as_model, listed
from loramux.gateway.anthropic.refusal import is_anthropic, plain_refusal, refusal
from loramux.gateway.anthropic.routes import Messages

__all__ = ["Messages", "as_model", "is_anthropic", "listed", "plain_refusal", "refusal"]
