"""`/v1/adapters`: the adapters of a server as resources of HTTP.

Routes are calls of the client's, made with the caller's key; they decide nothing.
"""

from loramux.gateway.adapters.routes import adapter_routes

__all__ = ["adapter_routes"]
