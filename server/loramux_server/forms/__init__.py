"""Structured output: forms that constrain a text, and the worker that computes token masks."""
