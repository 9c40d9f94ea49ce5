"""Adapters in the engine: where their weights are stored, and how layers apply them."""
