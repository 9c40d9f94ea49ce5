"""What is in names of tokens, and in no text. Unicode has no characters at these places."""

MARKS = ("\ufdd0", "\ufdd1", "\ufdd2")
"""What is left out of a name where its token is decoded."""
BEYOND = "\ufdd1beyond\ufdd0"
"""What the first token beyond those of a base model is called. It stands for none."""
UNKNOWN = "\ufdd3"
"""A character that no tokenizer made here knows."""
SPACE = "▁"
"""What a space is in names of pieces."""
