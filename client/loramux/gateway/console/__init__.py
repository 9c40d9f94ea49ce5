"""The console: a page for people, in front of the same server.

The page is files that a browser runs as they are. What it shows and does are calls of the client's,
made with the caller's key (`api.py`, `live.py`); texts come from the routes of
OpenAI's API. It decides nothing.
"""

from loramux.gateway.console.routes import Console

__all__ = ["Console"]
