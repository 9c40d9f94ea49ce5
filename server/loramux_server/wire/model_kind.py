"""Kinds of base models."""

import enum


class ModelKind(enum.StrEnum):
    """How a base model processes a text."""

    DECODER = "decoder"
    """Continues it; a token attends to those before it."""
    ENCODER = "encoder"
    """Reads it, as BERT does: a token attends to the whole text, which is not continued."""
    SEQ2SEQ = "seq2seq"
    """Reads it the same way and generates another, as T5 does."""
