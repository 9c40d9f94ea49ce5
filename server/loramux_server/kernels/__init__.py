"""The operations that cost time, each beside its definition in plain torch."""
