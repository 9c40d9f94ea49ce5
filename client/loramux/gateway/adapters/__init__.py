"""`/v1/adapters`: the adapters of a server as HTTP resources.

Each route makes client calls with the caller's key; the server does all checks.
"""

from loramux.gateway.adapters.routes import adapter_routes

__all__ = ["adapter_routes"]
