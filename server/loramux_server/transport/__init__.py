"""The transport layer between gRPC and the services."""
