"""A base model's folder, with files in it that transformers does not fetch with the model."""

from collections.abc import Sequence
from pathlib import Path

_FILES = ["*.json", "*.jinja", "*.model", "*.txt"]
"""What a processor is made of."""


def folder_of(path: str, files: Sequence[str] = _FILES) -> str:
    """Return the folder or hub id `path` as a folder, into which `files` have been fetched.

    Raises:
        OSError: The hub does not have it, or does not answer.
        ValueError: It is neither a folder nor a hub id.
    """
    if Path(path).is_dir():
        return path
    import huggingface_hub  # takes a while, and few need it

    return huggingface_hub.snapshot_download(path, allow_patterns=list(files))
