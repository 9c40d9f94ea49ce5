"""The performance-critical operations, each beside its reference definition in plain torch."""
