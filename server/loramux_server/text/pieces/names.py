"""Characters used in token names that occur in no text: Unicode noncharacters, except SPACE."""

MARKS = ("\ufdd0", "\ufdd1", "\ufdd2")
"""Removed from a name when its token is decoded."""
FIRST_EXTRA = "\ufdd1beyond\ufdd0"
"""Name of the first token beyond those of a base model. It stands for no text."""
UNKNOWN = "\ufdd3"
"""A character that is unknown to every tokenizer built here."""
SPACE = "▁"
"""How SentencePiece writes a space in a piece."""
