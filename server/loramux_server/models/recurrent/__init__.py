"""Layers that keep a state of each request: linear attention, state spaces, short convolutions."""
