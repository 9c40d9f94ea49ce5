"""Adapters in the engine: where their weights rest, and how a layer applies them."""
