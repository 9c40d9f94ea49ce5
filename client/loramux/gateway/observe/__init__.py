"""What operators see of the gateway: Prometheus metrics, and a log line for each request."""
