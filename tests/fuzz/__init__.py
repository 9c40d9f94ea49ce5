"""Invented input, on purpose close to what is right, for everything that strangers may send."""
