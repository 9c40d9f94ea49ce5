"""Observability of the gateway: Prometheus metrics, and a log line per request."""
