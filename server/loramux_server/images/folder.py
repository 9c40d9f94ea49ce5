"""A base model's folder, with the files that transformers does not fetch with the model."""

import json
from collections.abc import Sequence
from pathlib import Path

from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

_FILES = ["*.json", "*.jinja", "*.model", "*.txt"]
"""Files of a processor."""


_BESIDE_WEIGHTS = [*_FILES, "*.spm", "*.tiktoken"]
"""Files of configs, tokenizers, processors and chat templates."""


def revision_of(path: str, revision: str | None) -> str:
    """Return where a base model is: `path`, or the folder of `revision` of that hub id.

    Everything that a model consists of has been downloaded into that folder, and nothing else.

    Raises:
        OSError: The hub does not have it, or does not answer.
        ValueError: `path` is a folder, which has no revisions, or is not a valid hub id.
    """
    if revision is None:
        return path
    if not revision:
        raise ValueError("revision is ''; expected a branch, tag or commit")
    if Path(path).is_dir():
        raise ValueError(
            f"revision is {revision!r}, but the model is a folder; only a hub id has revisions"
        )
    import huggingface_hub  # slow to import, and rarely needed

    found = huggingface_hub.snapshot_download(
        path, revision=revision, allow_patterns=_BESIDE_WEIGHTS
    )
    index, weights = Path(found) / SAFE_WEIGHTS_INDEX_NAME, {SAFE_WEIGHTS_NAME}
    if index.is_file():
        weights = set(json.loads(index.read_bytes())["weight_map"].values())
    # The revision may be a branch: take the weights of the same commit.
    commit = Path(found).name
    return huggingface_hub.snapshot_download(path, revision=commit, allow_patterns=sorted(weights))


def folder_of(path: str, files: Sequence[str] = _FILES, *, revision: str | None = None) -> str:
    """Return `path` if it is a folder, else the folder to which `files` of that hub id are fetched.

    They are of `revision`, by default of the current main branch.

    Raises:
        OSError: The hub does not have it, or does not answer.
        ValueError: It is neither a folder nor a valid hub id.
    """
    if Path(path).is_dir():
        return path
    import huggingface_hub  # slow to import, and rarely needed

    return huggingface_hub.snapshot_download(path, revision=revision, allow_patterns=list(files))
