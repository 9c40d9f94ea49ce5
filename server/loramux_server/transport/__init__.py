"""Between gRPC and the services."""
