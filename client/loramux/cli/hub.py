"""Adapters on the Hugging Face Hub: `hf://ORG/NAME[@REVISION]` in place of a path.

Only files that packing reads are fetched, by name: no pickles and no code.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from loramux.cli.options import needs
from loramux_adapters.adapters_library import TENSOR_FILE as LIBRARY_TENSOR_FILE
from loramux_adapters.peft_folder import TENSOR_FILE
from loramux_adapters.sources import FILES

SCHEME = "hf://"
_ADDRESS = re.compile(r"hf://(?P<repository>[\w.-]+/(?P<name>[\w.-]+))(@(?P<revision>[\w./-]+))?")


class HubError(OSError):
    """An adapter cannot be fetched."""


@contextmanager
def local(source: str, *, quiet: bool) -> Iterator[tuple[Path, str]]:
    """Yield the path of `source` and its name; an adapter on the Hub is fetched first.

    Args:
        source: A path or an address on the Hub.
        quiet: Show no progress.

    Raises:
        HubError: There is no such adapter, or the Hub cannot be reached.
    """
    if not source.startswith(SCHEME):
        path = Path(source)
        yield path, path.resolve().name
        return
    found = _ADDRESS.fullmatch(source)
    if not found:
        raise HubError(f"{source!r} is not a Hub address; expected hf://ORG/NAME[@REVISION]")
    yield _fetched(source, found["repository"], found["revision"], quiet=quiet), found["name"]


def _fetched(source: str, repository: str, revision: str | None, *, quiet: bool) -> Path:
    with needs("huggingface_hub", extra="hub", what="hf://"):
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
        from huggingface_hub.utils.tqdm import disable_progress_bars
    if quiet:
        disable_progress_bars()
    try:
        path = Path(snapshot_download(repository, revision=revision, allow_patterns=list(FILES)))
    except RepositoryNotFoundError:
        raise HubError(f"{source}: no such repository, or access denied") from None
    except RevisionNotFoundError:
        raise HubError(f"{source}: no such revision") from None
    # The library raises HTTP errors, OS errors and its own, with messages of many lines.
    except Exception as error:
        first = str(error).strip().partition("\n")[0]
        raise HubError(f"{source} cannot be fetched: {first}") from None
    if not any((path / name).exists() for name in (TENSOR_FILE, LIBRARY_TENSOR_FILE)):
        raise HubError(
            f"{source} has no {TENSOR_FILE}; pickles (.bin) are not fetched: `hf download "
            f"{repository} --local-dir DIR`, then `loramux convert --from-bin DIR -o FILE`"
        )
    return path
