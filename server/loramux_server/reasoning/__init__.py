"""Reasoning before an answer: how a chat template marks it, and separating it from the answer."""
