"""A server that has the adapters of another one, its primary."""
