"""A server that answers as the Hugging Face Hub does, as far as repositories of files go."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tests.support.http_answers import answering


class Hub:
    """Repositories by name, each with its revisions and their files."""

    def __init__(self) -> None:
        self.files: dict[tuple[str, str], dict[str, bytes]] = {}
        """(repository, revision) -> the files of that revision."""
        self.gated: set[str] = set()
        self.sizes: dict[tuple[str, str], int] = {}
        """(repository, file) -> what is said of its size, where that may not be true."""
        self.asked: list[str] = []
        """Paths of all requests."""
        self.address = ""

    def put(self, repo: str, revision: str, folder: Path, prefix: str = "") -> None:
        """Make what is in `folder` a revision of `repo`."""
        files = {f"{prefix}{path.name}": path.read_bytes() for path in folder.iterdir()}
        self.files.setdefault((repo, revision), {}).update(files)

    @staticmethod
    def commit(revision: str) -> str:
        """Return the commit that a revision stands for."""
        return revision if len(revision) == 40 else revision.encode().hex().ljust(40, "0")[:40]

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers and body for a request."""
        self.asked.append(path)
        parts = [unquote(part) for part in urlsplit(path).path.strip("/").split("/")]
        if parts[:2] == ["api", "models"]:
            repo, revision = "/".join(parts[2:4]), parts[5] if len(parts) > 5 else "main"
            return self._info(repo, revision)
        if parts[2:3] != ["resolve"]:
            return 404, {}, b""
        repo, commit, name = "/".join(parts[:2]), parts[3], "/".join(parts[4:])
        for (owner, revision), files in self.files.items():
            if owner == repo and self.commit(revision) == commit and name in files:
                return 200, {}, files[name]
        return 404, {"X-Error-Code": "EntryNotFound"}, b""

    def _info(self, repo: str, revision: str) -> tuple[int, dict[str, str], bytes]:
        if repo in self.gated:
            return 403, {"X-Error-Code": "GatedRepo"}, b""
        if not any(owner == repo for owner, _ in self.files):
            return 404, {"X-Error-Code": "RepoNotFound"}, b""
        files = self.files.get((repo, revision))
        if files is None:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b""
        siblings = [
            {"rfilename": name, "size": self.sizes.get((repo, name), len(data))}
            for name, data in files.items()
        ]
        about = {"id": repo, "sha": self.commit(revision), "siblings": siblings}
        return 200, {"Content-Type": "application/json"}, json.dumps(about).encode()


@contextmanager
def running_hub() -> Iterator[Hub]:
    """Serve an empty hub on a port of this machine."""
    hub = Hub()
    with answering(lambda path, _: hub.answer(path)) as hub.address:
        yield hub
