"""`/v1/adapters`: the adapters of a server as resources of HTTP.

Each route is a call of the client's, made with the caller's key; it decides nothing.
"""

from loramux.gateway.adapters.routes import adapter_routes

__all__ = ["adapter_routes"]
