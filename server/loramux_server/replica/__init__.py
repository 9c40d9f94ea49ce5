"""Replicas: servers that mirror the adapters of another one, their primary."""
