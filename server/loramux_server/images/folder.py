"""A base model's folder, with the files of its processor in it."""

from pathlib import Path

_FILES = ["*.json", "*.jinja", "*.model", "*.txt"]
"""What is read of a base model on the hub."""


def folder_of(path: str) -> str:
    """Return the folder or hub id `path` as a folder, into which what is needed has been fetched.

    Raises:
        OSError: The hub does not have it, or does not answer.
        ValueError: It is neither a folder nor a hub id.
    """
    if Path(path).is_dir():
        return path
    import huggingface_hub  # takes a while, and few need it

    return huggingface_hub.snapshot_download(path, allow_patterns=_FILES)
