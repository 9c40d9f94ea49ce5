"""The gRPC services: they turn wire messages into engine and registry calls, and back."""
