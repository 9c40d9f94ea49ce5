"""Tokenizers of the tokenizers library, made of what other libraries read."""
