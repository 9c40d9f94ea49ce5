"""Sources from which adapters can be imported."""
