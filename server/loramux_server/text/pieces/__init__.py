"""Tokenizers of the tokenizers library, built from files in other formats."""
