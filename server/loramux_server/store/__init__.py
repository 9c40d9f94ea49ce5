"""The adapter store: names, package files, and checks against the base. Imports no torch."""
