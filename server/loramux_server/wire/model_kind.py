"""What kinds of base models there are."""

import enum


class ModelKind(enum.StrEnum):
    """What a base model makes of a text."""

    DECODER = "decoder"
    """It goes on with it: a token sees those before it."""
    ENCODER = "encoder"
    """It reads it, as BERT does: a token sees the whole text, which is not continued."""
    SEQ2SEQ = "seq2seq"
    """It reads it so, and writes another, as T5 does."""
