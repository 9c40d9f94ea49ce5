"""The messages between frontend and engine: plain structs that do not load torch."""
