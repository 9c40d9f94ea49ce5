"""The static files of the page."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

_FOLDER = Path(__file__).parent / "page"
_KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


@dataclass(frozen=True, slots=True)
class File:
    """One file, ready to be sent."""

    content: bytes
    kind: str
    etag: str


class Files:
    """Serves the files of the page from memory, and nothing else."""

    def __init__(self) -> None:
        """Read the files.

        Raises:
            OSError: A file cannot be read.
        """
        self._files = {path.name: _read(path) for path in _FOLDER.iterdir()}

    def page(self, request: Request) -> Response:
        """`GET /console`."""
        return self._answer("index.html", request)

    def file(self, request: Request) -> Response:
        """`GET /console/{name}`."""
        return self._answer(request.path_params["name"], request)

    def _answer(self, name: str, request: Request) -> Response:
        file = self._files.get(name)
        if file is None:
            raise HTTPException(404)
        # Browsers must revalidate each time: after an upgrade all files must be of one version.
        headers = {"etag": file.etag, "cache-control": "no-cache"}
        if request.headers.get("if-none-match") == file.etag:
            return Response(status_code=304, headers=headers)
        return Response(file.content, 200, headers, file.kind)


def _read(path: Path) -> File:
    content = path.read_bytes()
    return File(content, _KINDS[path.suffix], f'"{hashlib.sha256(content).hexdigest()[:32]}"')
