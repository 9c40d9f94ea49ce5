"""The web console of the servers behind the gateway.

The page is static files, without a build step. It shows and changes what client calls with the
caller's key return and do (`api.py`, `live.py`); text is generated through the OpenAI routes. The
server does all checks.
"""

from loramux.gateway.console.routes import Console

__all__ = ["Console"]
