"""A base model's folder, with files in it that transformers does not fetch with the model."""

import json
from collections.abc import Sequence
from pathlib import Path

from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

_FILES = ["*.json", "*.jinja", "*.model", "*.txt"]
"""What a processor is made of."""


_BESIDE_WEIGHTS = [*_FILES, "*.spm", "*.tiktoken"]
"""What configs, tokenizers, processors and templates are made of."""


def revision_of(path: str, revision: str | None) -> str:
    """Return where a base model is: `path`, or the folder of one `revision` of that hub id.

    All that a model is made of has been fetched into that folder, and nothing beside.

    Raises:
        OSError: The hub does not have it, or does not answer.
        ValueError: `path` is a folder, which has no revisions, or no hub id.
    """
    if revision is None:
        return path
    if not revision:
        raise ValueError("revision is ''; expected a branch, tag or commit")
    if Path(path).is_dir():
        raise ValueError(
            f"revision is {revision!r}, but it is a folder; revisions are those of a hub id"
        )
    import huggingface_hub  # takes a while, and few need it

    found = huggingface_hub.snapshot_download(
        path, revision=revision, allow_patterns=_BESIDE_WEIGHTS
    )
    index, weights = Path(found) / SAFE_WEIGHTS_INDEX_NAME, {SAFE_WEIGHTS_NAME}
    if index.is_file():
        weights = set(json.loads(index.read_bytes())["weight_map"].values())
    # Of what may be a branch, the weights are those of the same commit.
    commit = Path(found).name
    return huggingface_hub.snapshot_download(path, revision=commit, allow_patterns=sorted(weights))


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
