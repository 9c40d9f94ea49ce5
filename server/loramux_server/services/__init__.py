"""The gRPC services: wire messages in, engine and registry calls, wire messages out."""
