"""Admission control: which calls may wait for the engine, and for how long."""
