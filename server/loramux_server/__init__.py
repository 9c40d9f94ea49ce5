"""The server: a frontend process that speaks gRPC and an engine process that owns the model."""
